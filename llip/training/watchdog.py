"""A step that takes far longer than usual: found within minutes, shown with the stacks of all ranks, and ended.

A thread of every rank tells the others where its rank is, in a store that rank 0 serves. A rank whose phase lasts too
long asks all ranks for their stacks; these go to the standard error and to `hangs/` in the run's folder, beside a line
that says who waits for whom. Then the process ends, and Ray starts the workers again. A rank that says nothing any
more is named too: its process is stopped, or its machine is gone. Where that is rank 0, the store says nothing either,
and every other rank finds so for itself.
"""

import contextlib
import faulthandler
import json
import logging
import os
import socket
import statistics
import tempfile
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from datetime import timedelta
from typing import Any, TypeVar

import torch.distributed as dist

from llip import storage
from llip.runs.goodput import Phases
from llip.training.parallel import World

logger = logging.getLogger(__name__)

HUNG = 75
"""Exit code of a process that ends because its step hangs."""
FOLDER, REASON = "hangs", "reason.json"
TIMES_USUAL = 10.0
"""A step is late after so many usual ones, and after the seconds that are given."""
SLOW_PHASES = {"start_up": 10.0, "restore": 10.0, "checkpoint": 10.0, "evaluation": 10.0}
"""Phases that may last so many times longer than a step."""
LOOKS = 12.0
"""Looks within the time after which a step is late."""

Result = TypeVar("Result")


class Watchdog:
    """Watches this rank, and ends its process if it hangs while others are there to start it again."""

    def __init__(self, run_folder: str, phases: Phases, world: World, hosts: Sequence[str], seconds: float) -> None:
        self._folder, self._phases, self._world, self._hosts, self._seconds = run_folder, phases, world, hosts, seconds
        self._store = _shared_store(world)
        self._pause = min(5.0, seconds / LOOKS)
        self._patience = min(10.0, max(2.0, 2 * self._pause))
        self._asking: threading.Thread | None = None
        self._usual: deque[float] = deque(maxlen=100)
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)
        self._said = False

    def __enter__(self) -> "Watchdog":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()

    def limit(self) -> float:
        """Seconds that the present phase may last."""
        usual = statistics.median(self._usual) if self._usual else 0.0
        first = self._phases.steps < 2  # compiling, connecting
        factor = 10.0 if first else SLOW_PHASES.get(self._phases.current, 1.0)
        return factor * max(self._seconds, TIMES_USUAL * usual)

    def _watch(self) -> None:
        look, steps, began = 0, 0, time.monotonic()
        before = began
        while not self._ended.wait(self._pause):
            now = time.monotonic()
            if now - before > 4 * self._pause:  # this process stood still, as its phase did
                self._phases.since += now - before
            if self._phases.steps > steps:
                if steps:
                    self._usual.append((now - began) / (self._phases.steps - steps))
                steps, began = self._phases.steps, now
            look += 1
            self._tell(look)
            asked = self._ask(lambda store: store.check(["hang"]))
            late = time.monotonic() - self._phases.since > self.limit()
            if (late or asked) and not self._said:
                self._said = True
                self._end(look, late)
            elif not late and self._store is None:
                self._said = False
            before = time.monotonic()

    def _ask(self, call: Callable[[Any], Result]) -> Result | None:
        """The store's answer to a call; None without a store, and where its server is gone or stopped.

        A stopped server lets a call wait for ever, past the store's own limit; until it returns, others are not made.
        """
        if self._store is None or (self._asking is not None and self._asking.is_alive()):
            return None
        found: list[Result] = []

        def ask() -> None:
            with contextlib.suppress(Exception):
                found.append(call(self._store))

        self._asking = threading.Thread(target=ask, daemon=True)
        self._asking.start()
        self._asking.join(self._patience)
        return found[0] if found else None

    def _mark(self, look: int) -> list[Any]:
        return [look, self._phases.current, self._phases.steps, time.monotonic() - self._phases.since]

    def _tell(self, look: int) -> None:
        mark = json.dumps(self._mark(look))
        self._ask(lambda store: store.set(f"rank {self._world.rank}", mark))

    def _end(self, look: int, late: bool) -> None:
        """Show where every rank is; of several, end this one."""
        if late:
            self._ask(lambda store: store.set("hang", "1"))
        self._show_stacks()
        silent, where = self._where(look)
        answering = [rank for rank in range(self._world.size) if rank not in silent]
        if self._world.rank == min(answering, default=self._world.rank):
            self._say(silent, where)
        if self._store is None:
            return
        time.sleep(3 * self._pause)  # the others show theirs
        os._exit(HUNG)  # nothing else ends a process whose main thread waits in a collective

    def _where(self, look: int) -> tuple[list[int], dict[int, list[Any]]]:
        """Ranks whose marks have stopped, and the last mark of every other rank."""
        if self._store is None:
            return [], {0: self._mark(look)}
        first = self._ask(self._marks)
        for _ in range(3):
            time.sleep(self._pause)
            look += 1
            self._tell(look)
        second = self._ask(self._marks)
        if first is None or second is None:  # of the other ranks nothing is known
            return [0] if self._world.rank else [], {self._world.rank: self._mark(look)}
        silent = [r for r in range(self._world.size) if r not in second or second[r][0] == first.get(r, [None])[0]]
        return [rank for rank in silent if rank != self._world.rank], second

    def _marks(self, store: Any) -> dict[int, list[Any]]:
        ranks = [rank for rank in range(self._world.size) if store.check([f"rank {rank}"])]
        return {rank: json.loads(store.get(f"rank {rank}")) for rank in ranks}

    def _say(self, silent: Sequence[int], where: dict[int, list[Any]]) -> None:
        step = max((mark[2] for mark in where.values()), default=self._phases.steps)
        waits = [
            f"rank {rank} ({self._hosts[rank]}) has been in {mark[1]} of its step {mark[2]} for {mark[3]:.0f} s"
            for rank, mark in sorted(where.items(), key=lambda item: (item[1][2], item[1][1]))
            if rank not in silent
        ]
        gone = [
            f"rank {rank} ({self._hosts[rank]}) does not answer: stopped, or its machine is gone" for rank in silent
        ]
        usual = f", usually {statistics.median(self._usual):.3g} s" if self._usual else ""
        reason = f"a step hangs ({step} since the start{usual}): {'; '.join(gone + waits)}"
        logger.error("%s", reason)
        self._keep(REASON, json.dumps({"time": time.time(), "reason": reason}))

    def _show_stacks(self) -> None:
        with tempfile.TemporaryFile() as file:
            faulthandler.dump_traceback(file)
            file.seek(0)
            stacks = file.read().decode(errors="replace")
        title = f"rank {self._world.rank} on {self._hosts[self._world.rank]}, in {self._phases.current}:"
        logger.error("%s\n%s", title, stacks)
        self._keep(f"rank-{self._world.rank:05d}.txt", f"{title}\n{stacks}")

    def _keep(self, name: str, content: str) -> None:
        """Write a file, for as long as it takes, but no longer than a look."""

        def write() -> None:
            with contextlib.suppress(Exception):
                storage.write_bytes(storage.join(self._folder, FOLDER, name), content.encode())

        writer = threading.Thread(target=write, daemon=True)
        writer.start()
        writer.join(max(2.0, self._pause))


@contextlib.contextmanager
def watched(
    run_folder: str, phases: Phases, world: World, hosts: Sequence[str], seconds: float | None
) -> Iterator[None]:
    """Watch this rank while the block runs; without seconds, not at all. `hosts`: see `hosts_of`."""
    if seconds is None:
        yield
        return
    with Watchdog(run_folder, phases, world, hosts, seconds):
        yield


def hosts_of(world: World) -> list[str]:
    """Host and process of every rank."""
    return world.gather(f"{socket.gethostname()}, process {os.getpid()}")


def last_reason(run_folder: str, since: float) -> str | None:
    """Reason that a watchdog gave after a time of this machine's clock; None where none did."""
    uri = storage.join(run_folder, FOLDER, REASON)
    if not storage.exists(uri):
        return None
    found = storage.read_json(uri)
    return str(found["reason"]) if found["time"] >= since else None


def _shared_store(world: World) -> Any:
    """A store of its own, since a thread that waits in the group's keeps others from it; None for one process."""
    if world.group is None:
        return None
    address, patience = os.environ.get("MASTER_ADDR", "127.0.0.1"), timedelta(seconds=10)
    server = None
    if world.rank == 0:
        server = dist.TCPStore(address, 0, is_master=True, wait_for_workers=False, timeout=patience)
    port = world.gather(server.port if server else None)[0]
    return server or dist.TCPStore(address, port, is_master=False, wait_for_workers=False, timeout=patience)
