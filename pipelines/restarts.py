"""Restarts of a run that fails: any number while it makes progress, a few in a row where it makes none."""

import logging
import os
import signal
import subprocess
import sys
import threading
from types import FrameType

from llip.runs import run_folder as runs
from llip.runs.stopping import GaveUpError
from pipelines import command

logger = logging.getLogger(__name__)

LONGEST_PAUSE = 30.0
"""Seconds before a restart; the first is at once, and the pause doubles with every one that brings no progress."""


class Budget:
    """Failures that a run may have in a row; every new checkpoint makes it whole again."""

    def __init__(self, run_folder: str, most: int) -> None:
        """`most` failures in a row without a new checkpoint between them; -1: any number."""
        self._folder, self._most = run_folder, most
        self._step, self._failures = self._progress(), 0

    def spend(self, reason: str) -> float:
        """Count a failure. Returns the seconds to wait before the restart; raises GaveUpError where there is none."""
        step = self._progress()
        if step > self._step:
            self._step, self._failures = step, 0
        self._failures += 1
        if 0 <= self._most < self._failures:
            raise GaveUpError(
                f"{self._folder} failed {self._failures} times in a row without a new checkpoint after step {step}; "
                f"the last time: {reason}"
            )
        allowed = "any number" if self._most < 0 else self._most
        logger.warning("restart %d of %s after the checkpoint of step %d: %s", self._failures, allowed, step, reason)
        return min(2.0 ** (self._failures - 1) - 1, LONGEST_PAUSE)

    def _progress(self) -> int:
        try:
            return runs.progress(self._folder)
        except Exception:  # a storage that does not answer now shows no progress
            return getattr(self, "_step", 0)


def resubmit(run_folder: str, most: int) -> int:
    """Run this program's command line in another process, again where that one dies. Returns its exit code.

    The other one's exit codes of `command` are final. SIGTERM is passed on to it. Raises GaveUpError where it dies
    `most` times in a row without a new checkpoint.
    """
    budget = Budget(run_folder, most)
    stopped = threading.Event()
    process: subprocess.Popen[bytes] | None = None

    def stop(number: int, frame: FrameType | None) -> None:
        stopped.set()
        if process:
            process.send_signal(number)

    before = signal.signal(signal.SIGTERM, stop)
    try:
        while True:
            environment = os.environ | {command.RESUBMITTED: "1"}
            process = subprocess.Popen([sys.executable, *sys.orig_argv[1:]], env=environment)
            code = process.wait()
            if code in command.FINAL or stopped.is_set():
                return code
            how = signal.Signals(-code).name if code < 0 else f"exit code {code}"
            if stopped.wait(budget.spend(f"the driver died of {how}")):
                return command.STOPPED
    finally:
        signal.signal(signal.SIGTERM, before)
