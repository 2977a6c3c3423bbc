"""Failures of workers, by kind.

A failure of one rank (a storage, a node, a GPU) is raised there, and Ray Train starts all workers again. Only a failure
that all ranks share is final: a setting that none of them can train with, and a loss that is not finite.
"""

import contextlib
import os
import time
from typing import Any

from ray.train import UserCallback

from llip.runs.stopping import StoppedError
from llip.training import watchdog
from pipelines.restarts import Budget


class RefusedError(RuntimeError):
    """A ValueError of one of `ranks` workers."""

    def __init__(self, message: str, ranks: int) -> None:
        super().__init__(message, ranks)
        self.message, self.ranks = message, ranks

    def __str__(self) -> str:
        return self.message


class Restarts(UserCallback):
    """Ray Train's callback that decides whether workers are started again; what it raises ends the run.

    A preemption is nobody's failure and always followed by a restart.
    """

    def __init__(self, run_folder: str, most: int) -> None:
        self._folder, self._since = run_folder, time.time()
        self._budget = Budget(run_folder, most)
        self._refusal = ""

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Arrive in the process of Ray Train's controller, whose environment is set nowhere else."""
        vars(self).update(state)
        # Ranks that wait for a failed one do not leave their process group: Ray would wait for them for 30 s.
        os.environ.setdefault("TORCH_PROCESS_GROUP_SHUTDOWN_TIMEOUT_S", "3")

    def after_exception(self, run_context: Any, worker_exceptions: dict[int, Exception]) -> None:
        """Raises ValueError for what every rank refuses, or one of them twice, and GaveUpError."""
        refused = [error for error in worker_exceptions.values() if isinstance(error, RefusedError)]
        if refused and (len(refused) == refused[0].ranks or refused[0].message == self._refusal):
            raise ValueError(refused[0].message)
        self._refusal = refused[0].message if refused else ""
        if not any(map(_preempted, worker_exceptions.values())):
            time.sleep(self._budget.spend(self._hang() or reason_of(worker_exceptions)))
        self._since = time.time()

    def _hang(self) -> str | None:
        """Reason that the watchdog of a dead process left; None without one."""
        with contextlib.suppress(Exception):  # a storage that does not answer now does not tell
            return watchdog.last_reason(self._folder, self._since)
        return None


def _preempted(error: Exception) -> bool:
    cause: Any = getattr(error, "health_check_failure", error)
    return isinstance(cause, StoppedError) or getattr(cause, "preempted", False)


def reason_of(worker_exceptions: dict[int, Exception]) -> str:
    """The one failure that explains the others: a rank that lost its peers says less than one that failed itself."""
    rank, error = min(worker_exceptions.items(), key=lambda item: (_lost_a_peer(item[1]), item[0]))
    lines = [line.strip() for line in str(getattr(error, "health_check_failure", error)).splitlines() if line.strip()]
    return f"rank {rank}: {type(error).__name__}: {' '.join(lines)[:500]}"


def _lost_a_peer(error: Exception) -> bool:
    text = str(error)
    return isinstance(error, RuntimeError) and any(word in text for word in ("peer", "gloo", "NCCL", "TCPStore"))
