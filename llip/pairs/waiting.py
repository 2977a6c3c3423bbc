"""How long this rank waits for the others: a stopwatch that runs wherever a step cannot go on without a collective.

The process has one, as it has one profiler: what waits lies deep in the loss, and inside of FSDP2.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch


class Stopwatch:
    """Adds up waits: on the CPU by the clock, on a GPU from the events of its stream, which the host does not wait for.

    What travels while a rank computes is not waited for, and does not count.
    """

    def __init__(self) -> None:
        self._seconds = 0.0
        self._events: list[tuple[torch.cuda.Event, torch.cuda.Event]] = []

    def start(self, device: torch.device) -> Callable[[], None]:
        """Begin a wait; what is returned ends it."""
        if device.type == "cuda":
            begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            begin.record()

            def stop() -> None:
                end.record()
                self._events.append((begin, end))

        else:
            before = time.perf_counter()

            def stop() -> None:
                self._seconds += time.perf_counter() - before

        return stop

    @contextmanager
    def on(self, device: torch.device) -> Iterator[None]:
        """What happens inside is a wait."""
        stop = self.start(device)
        yield
        stop()

    def lap(self) -> float:
        """Seconds waited since the last lap. On a GPU its stream has to have come as far: the host waits for it."""
        seconds, events = self._seconds, self._events
        self._seconds, self._events = 0.0, []
        for begin, end in events:
            end.synchronize()
            seconds += begin.elapsed_time(end) / 1000
        return seconds


waiting = Stopwatch()
