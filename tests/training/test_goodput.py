"""The account of a run: what its time went to, over restarts and stops."""

import time
from dataclasses import replace
from pathlib import Path

import pytest

from llip import storage
from llip.config import TrainingConfig
from llip.runs import goodput
from llip.runs.goodput import PARTS, Goodput, Phases
from llip.runs.stopping import StoppedError
from llip.runs.tracking import Tracker, read_metrics
from llip.training.loop import train
from llip.training.parallel import current_world


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(time, "time", clock)
    monkeypatch.setattr(time, "monotonic", clock)
    return clock


def _attempt(folder: str, clock: Clock, *, asked: float, start: int, steps: int, end: type[Exception] | None) -> None:
    """Half a second of start-up, then steps of 2 s, of which 0.5 s wait for data, and a checkpoint of 1 s."""
    phases = Phases()
    clock.now += 0.5
    account = Goodput(folder, phases, asked=asked)
    account.resume(start)
    try:
        with account:
            for step in range(start, start + steps):
                for phase, seconds in (("load", 0.5), ("forward", 1.0), ("update", 0.5)):
                    phases.enter(phase)
                    clock.now += seconds
                with phases.inside("checkpoint"):
                    clock.now += 1.0
                account.note(step + 1)
            if end:
                raise end
    except (StoppedError, RuntimeError):
        pass


def test_every_second_has_one_part(tmp_path: Path, clock: Clock) -> None:
    """Waiting for workers, a failure that costs 3 of 10 steps and 20 s, and a stop of a day that does not count."""
    folder = str(tmp_path)
    clock.now += 7
    _attempt(folder, clock, asked=1000.0, start=0, steps=10, end=RuntimeError)
    clock.now += 20
    _attempt(folder, clock, asked=1000.0, start=7, steps=5, end=StoppedError)
    clock.now += 86_400
    asked = clock.now
    clock.now += 3
    _attempt(folder, clock, asked=asked, start=12, steps=8, end=None)
    found = goodput.account(storage.read_json(f"{folder}/goodput.json"))
    steps = 10 + 5 + 8
    expected = {"training": (steps - 3) * 1.5, "redone": 4.5, "data_wait": steps * 0.5, "checkpoints": steps * 1.0}
    expected |= {"start_up": 1.5, "restore": 0.0, "evaluation": 0.0, "waiting": 7.5 + 20.5 + 3.5}
    assert {part: found[f"seconds_{part}"] for part in PARTS} == pytest.approx(expected)
    assert found["goodput"] == pytest.approx(expected["training"] / sum(expected.values()))
    assert "training 30 s" in goodput.summary(folder) and "3 starts" in goodput.summary(folder)


def test_training_keeps_its_account(small: TrainingConfig, shards: str, tmp_path: Path) -> None:
    folder, begin = str(tmp_path / "run"), time.time()
    with Tracker(None, folder) as tracker:
        train(small, shards=shards, folder=folder, world=current_world(), tracker=tracker, asked=begin - 5)
    found = goodput.account(storage.read_json(f"{folder}/goodput.json"))
    parts = [found[f"seconds_{part}"] for part in PARTS]
    assert found["seconds_waiting"] >= 5 and found["seconds_training"] > 0 and min(parts) >= 0
    assert sum(parts) <= time.time() - begin + 5.1
    assert 0 < read_metrics(folder)[-1]["goodput"] < 1
    with Tracker(None, folder) as tracker:
        more = replace(small, checkpoint_every=1)
        train(more, shards=shards, folder=folder, world=current_world(), tracker=tracker)
    assert len(storage.read_json(f"{folder}/goodput.json")) == 2
