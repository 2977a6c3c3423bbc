"""Time account of a run over all its restarts: the seconds of every phase, kept in the run's folder.

Goodput is the share of the time since training was asked for that went into steps that were kept (as in Google's ML
goodput). The rest of the time is divided into data wait, start-up, restore, steps that a failure made the run do again,
checkpoints, evaluation, and waiting for resources, which is the time between the last sign of one attempt and the start
of the next. Time after a stop that was asked for does not count.
"""

import logging
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from llip import storage
from llip.runs.stopping import StoppedError

logger = logging.getLogger(__name__)

NAME = "goodput.json"

PART = {
    "start_up": "start_up",
    "restore": "restore",
    "load": "data_wait",
    "forward": "training",
    "loss and backward": "training",
    "reduce": "training",
    "update": "training",
    "checkpoint": "checkpoints",
    "evaluation": "evaluation",
}
"""The part of the account that a phase of training belongs to."""
PARTS = ("training", *(part for part in dict.fromkeys(PART.values()) if part != "training"), "redone", "waiting")


class Phases:
    """The phase that this process is in, since when, and the seconds of every phase before. One thread enters phases,
    any thread may look."""

    def __init__(self) -> None:
        self.current, self.since = "start_up", time.monotonic()
        self.entered = 0
        """Number of phases entered so far; it grows while the process makes progress."""
        self.steps = 0
        """Steps that were begun."""
        self._seconds = dict.fromkeys(PART, 0.0)
        self._lock = threading.Lock()

    def enter(self, phase: str) -> None:
        with self._lock:
            now = time.monotonic()
            self._seconds[self.current] += now - self.since
            self.current, self.since = phase, now
            self.entered += 1
            self.steps += phase == "load"

    @contextmanager
    def inside(self, phase: str) -> Iterator[None]:
        """Be in a phase, then in the one before again."""
        before = self.current
        self.enter(phase)
        yield
        self.enter(before)

    def seconds(self) -> dict[str, float]:
        """By part of the account, up to now."""
        with self._lock:
            found = dict.fromkeys(PARTS, 0.0)
            for phase, seconds in self._seconds.items():
                found[PART[phase]] += seconds
            found[PART[self.current]] += time.monotonic() - self.since
        return found


class Goodput:
    """The account of a run: one entry an attempt, in `goodput.json`. `enabled=False`, for ranks other than 0, does
    nothing."""

    def __init__(self, run_folder: str, phases: Phases, *, asked: float | None = None, enabled: bool = True) -> None:
        """`asked`: when training was asked for, by the clock of whoever asked; None: now."""
        self._uri, self._phases, self._enabled = storage.join(run_folder, NAME), phases, enabled
        self._attempts = _read(self._uri) if enabled else []
        now = time.time()
        begin = now if asked is None else asked
        if self._attempts:
            before = self._attempts[-1]
            begin = max(begin, before["last"]) if before["stopped"] else before["last"]
        self._own: dict[str, Any] = {"waiting": max(0.0, now - begin), "first_step": 0, "step": 0, "stopped": False}
        self._attempts.append(self._own)
        self._lock = threading.Lock()

    def __enter__(self) -> "Goodput":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._own["stopped"] = kind is None or issubclass(kind, (StoppedError, KeyboardInterrupt))
        self.save()

    def resume(self, step: int) -> None:
        """The attempt begins after `step` updates: what the ones before trained beyond has to be done again."""
        for attempt in self._attempts[:-1]:
            if attempt["step"] > step:
                lost = (attempt["step"] - step) / max(1, attempt["step"] - attempt["first_step"])
                moved = attempt["seconds"]["training"] * min(1.0, lost)
                attempt["seconds"]["training"] -= moved
                attempt["seconds"]["redone"] += moved
                attempt["step"] = step
        self._own["first_step"] = self._own["step"] = step

    def note(self, step: int) -> dict[str, float]:
        """Note that `step` updates are done. Returns the account up to now: see `account`."""
        with self._lock:
            self._own["step"] = step
            return account(self._updated())

    def save(self) -> None:
        """Write the account; where that fails now, the next time does it."""
        if not self._enabled:
            return
        with self._lock:
            content = storage.to_json(self._updated())
        try:
            storage.write_bytes(self._uri, content)
        except storage.FAILURES as error:
            logger.warning("%s cannot be written now (%s)", self._uri, error)

    def _updated(self) -> list[dict[str, Any]]:
        self._own |= {"last": time.time(), "seconds": self._phases.seconds()}
        return self._attempts


def account(attempts: list[dict[str, Any]]) -> dict[str, float]:
    """`goodput`, and `seconds_` of every part, of some attempts."""
    seconds = {part: sum(attempt["seconds"].get(part, 0.0) for attempt in attempts) for part in PARTS}
    seconds["waiting"] += sum(attempt["waiting"] for attempt in attempts)
    whole = sum(seconds.values())
    share = seconds["training"] / whole if whole else 0.0
    return {"goodput": share} | {f"seconds_{part}": value for part, value in seconds.items()}


def summary(run_folder: str) -> str:
    """The account of a run in one line; empty where there is none."""
    attempts = _read(storage.join(run_folder, NAME))
    if not attempts:
        return ""
    found = account(attempts)
    parts = [f"{part.replace('_', ' ')} {found[f'seconds_{part}']:,.0f} s" for part in PARTS]
    starts = f", {len(attempts)} starts" if len(attempts) > 1 else ""
    return f"{found['goodput']:.1%} ({', '.join(parts)}{starts})"


def _read(uri: str) -> list[dict[str, Any]]:
    return list(storage.read_json(uri)) if storage.exists(uri) else []
