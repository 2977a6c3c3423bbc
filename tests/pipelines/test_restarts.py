"""Which failures are followed by a restart, how many, and what ends a run; a driver that dies is started again."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from ray.exceptions import RayActorError

from llip.runs.stopping import GaveUpError, StoppedError
from pipelines import failures, restarts
from pipelines.failures import RefusedError, Restarts

LOST = RuntimeError("[gloo] Connection closed by peer [127.0.0.1]:1234")
STORAGE = OSError(5, "the service is away")


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(time, "sleep", lambda seconds: None)


def _checkpoint(folder: Path, step: int) -> None:
    (folder / "checkpoints").mkdir(exist_ok=True)
    (folder / "checkpoints" / "latest.json").write_text(json.dumps({"step": step}))


def test_a_run_that_makes_progress_never_runs_out_of_restarts(tmp_path: Path) -> None:
    budget = restarts.Budget(str(tmp_path), 2)
    for step in range(20):
        _checkpoint(tmp_path, step)
        assert budget.spend("a reason") == 0
    assert budget.spend("a reason") == 1
    with pytest.raises(GaveUpError, match=r"3 times in a row without a new checkpoint after step 19; .*: another one"):
        budget.spend("another one")


def test_pauses_grow_and_any_number_is_any_number(tmp_path: Path) -> None:
    budget = restarts.Budget(str(tmp_path), -1)
    assert [budget.spend("") for _ in range(8)] == [0, 1, 3, 7, 15, 30, 30, 30]


@pytest.mark.parametrize(
    ("worker_exceptions", "end"),
    [
        ({1: STORAGE, 0: LOST}, None),
        ({2: RayActorError()}, None),
        ({0: RefusedError("no", 2)}, None),
        ({0: RefusedError("no", 2), 1: RefusedError("no", 2)}, "no"),
    ],
)
def test_only_what_every_rank_refuses_is_final(
    worker_exceptions: dict[int, Exception], end: str | None, tmp_path: Path
) -> None:
    policy: Any = Restarts(str(tmp_path), 10)
    if end:
        with pytest.raises(ValueError, match=end):
            policy.after_exception(None, worker_exceptions)
    else:
        policy.after_exception(None, worker_exceptions)


def test_what_one_rank_refuses_twice_is_final(tmp_path: Path) -> None:
    """A damaged shard is read by one rank."""
    policy = Restarts(str(tmp_path), 10)
    policy.after_exception(None, {3: RefusedError("shard 7 is damaged", 8), 0: LOST})
    with pytest.raises(ValueError, match="shard 7 is damaged"):
        policy.after_exception(None, {5: RefusedError("shard 7 is damaged", 8)})


def test_preemptions_do_not_count_and_the_last_failure_is_the_reason(tmp_path: Path) -> None:
    policy = Restarts(str(tmp_path), 1)
    for _ in range(5):
        policy.after_exception(None, {0: StoppedError("preempted"), 1: LOST})
    policy.after_exception(None, {0: LOST, 1: STORAGE})
    with pytest.raises(GaveUpError, match=r"the last time: rank 1: OSError: \[Errno 5\] the service is away$"):
        policy.after_exception(None, {0: LOST, 1: STORAGE})


def test_the_reason_is_not_a_lost_peer_where_there_is_another() -> None:
    assert failures.reason_of({0: LOST, 1: LOST}).startswith("rank 0: RuntimeError: [gloo]")
    assert failures.reason_of({0: LOST, 7: STORAGE}).startswith("rank 7: OSError")


DRIVER = """
import json, os, pathlib, signal, sys
folder = pathlib.Path(sys.argv[1])
tries = len(list(folder.glob("try-*")))
(folder / f"try-{tries}").touch()
assert os.environ["LLIP_RESUBMITTED"]
if tries < int(sys.argv[2]):
    os.kill(os.getpid(), signal.SIGKILL)
sys.exit(int(sys.argv[3]))
"""


@pytest.mark.parametrize(("deaths", "code"), [(2, 0), (1, 2), (0, 143)])
def test_a_driver_that_dies_is_started_again(
    deaths: int, code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "orig_argv", [sys.executable, "-c", DRIVER, str(tmp_path), str(deaths), str(code)])
    assert restarts.resubmit(str(tmp_path), 2) == code
    assert len(list(tmp_path.glob("try-*"))) == deaths + 1


def test_a_driver_that_dies_again_and_again_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "orig_argv", [sys.executable, "-c", DRIVER, str(tmp_path), "9", "0"])
    with pytest.raises(GaveUpError, match="the last time: the driver died of SIGKILL"):
        restarts.resubmit(str(tmp_path), 2)


def test_sigterm_in_the_pause_starts_nothing_more(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "orig_argv", [sys.executable, "-c", DRIVER, str(tmp_path), "9", "0"])

    def stopped(*_: object) -> float:
        os.kill(os.getpid(), signal.SIGTERM)
        return 30.0

    monkeypatch.setattr(restarts.Budget, "spend", stopped)
    assert restarts.resubmit(str(tmp_path), 2) == 143
    assert len(list(tmp_path.glob("try-*"))) == 1


def test_sigterm_is_passed_on_and_ends_it(tmp_path: Path) -> None:
    """The process that is asked to stop has the other one's exit code, whatever it is."""
    other = "import pathlib, signal, sys, time; signal.signal(15, lambda *_: sys.exit(9)); "
    other += f"pathlib.Path({str(tmp_path / 'up')!r}).touch(); time.sleep(60)"
    program = "import sys; from pipelines import restarts; "
    program += f"sys.orig_argv = ['', '-c', {other!r}]; sys.exit(restarts.resubmit({str(tmp_path)!r}, 2))"
    process = subprocess.Popen([sys.executable, "-c", program], env=os.environ)
    deadline = time.monotonic() + 300
    while not (tmp_path / "up").exists():
        assert process.poll() is None and time.monotonic() < deadline
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 9
