"""The stopwatch of waits: by the clock, and by the events of a GPU, which none of these tests has."""

import time

import pytest
import torch

from llip.pairs.waiting import Stopwatch

CPU, GPU = torch.device("cpu"), torch.device("cuda", 0)


class Event:
    """An event of a stream that takes a second for everything that is put in it; times are known once it is asked."""

    stream = 0

    def __init__(self, enable_timing: bool) -> None:
        assert enable_timing
        self.reached = False

    def record(self) -> None:
        Event.stream += 1
        self.place = Event.stream

    def synchronize(self) -> None:
        self.reached = True

    def elapsed_time(self, end: "Event") -> float:
        assert end.reached
        return 1000.0 * (end.place - self.place)


def test_a_clock_adds_up_what_happens_inside() -> None:
    watch = Stopwatch()
    for _ in range(3):
        time.sleep(0.02)
        with watch.on(CPU):
            time.sleep(0.01)
    assert watch.lap() == pytest.approx(0.03, abs=0.01)
    assert watch.lap() == 0


def test_on_a_gpu_its_stream_is_timed_and_the_host_does_not_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "Event", Event)
    watch = Stopwatch()
    for work in (0, 2):
        with watch.on(GPU):
            Event.stream += work
    stop = watch.start(GPU)
    stop()
    assert watch.lap() == (1 + 3 + 1)
    assert watch.lap() == 0
