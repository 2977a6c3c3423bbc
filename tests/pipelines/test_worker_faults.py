"""A storage that one rank cannot reach, a worker that is stopped, a driver that is killed: the run goes on, or ends
within a minute with one reason."""

import json
import re
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import ray
from helpers.faults import ended, survives
from helpers.noted_pretrain import OUTAGE
from helpers.noted_runs import KILL_AFTER, command, trains_now, wait_for_checkpoint, weights_of, workers_here

from llip.training import watchdog

pytestmark = [pytest.mark.slow, pytest.mark.soak, pytest.mark.timeout(900)]
Note = Callable[[str, object], None]
STEPS = 400
"""Enough that a disturbance meets a run that is still training."""


@pytest.fixture(scope="module")
def cluster(ray_session: None) -> Iterator[None]:
    """The session's cluster for the processes that tests start."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_ADDRESS", ray.get_runtime_context().gcs_address)
        yield


@pytest.fixture(scope="module")
def whole(shards: str, cluster: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of an undisturbed run of two workers."""
    output = tmp_path_factory.mktemp("whole")
    subprocess.run(command(shards, output, workers=2, steps=STEPS), check=True)
    return output / "runs" / "run"


class Run:
    """A run of two workers that is in the middle of its training."""

    def __init__(
        self, shards: str, output: Path, *flags: str, outage: dict[str, float] | None = None, **options: float
    ) -> None:
        self.folder = output / "runs" / "run"
        if outage:
            self.folder.mkdir(parents=True)
            (self.folder / OUTAGE).write_text(json.dumps(outage))
        self._log = output / "log"
        with self._log.open("wb") as log:
            chosen: dict[str, Any] = {"workers": 2, "steps": STEPS, **options}
            line = [*command(shards, output, **chosen), *flags]
            self.process = subprocess.Popen(line, stdout=log, stderr=log)
        wait_for_checkpoint(self.folder, self.process, step=KILL_AFTER, workers=2)

    def end(self, seconds: float = 600) -> tuple[int, str]:
        """Exit code, and what it printed."""
        try:
            return self.process.wait(seconds), self._log.read_text(errors="replace")
        finally:
            self.process.kill()


def test_a_storage_that_one_rank_cannot_reach_for_20_seconds(
    shards: str, whole: Path, tmp_path: Path, record_property: Note
) -> None:
    run = Run(shards, tmp_path, outage={"rank": 1, "after": 200, "seconds": 20})
    code, printed = run.end()
    assert code == 0, printed[-3000:]
    assert "the shards are out of reach" in printed and "restart 1" not in printed
    how = "tried again, went on to the end"
    fault = "storage out of reach of one rank for 20 s"
    survives(record_property, fault, how, run=str(run.folder), undisturbed=str(whole))
    assert weights_of(run.folder, STEPS) == weights_of(whole, STEPS)


def test_a_storage_that_one_rank_never_reaches_again(
    shards: str, cluster: None, tmp_path: Path, record_property: Note
) -> None:
    """Its tries take 31 s; a minute after them all has ended."""
    outage = {"rank": 1, "after": 600, "seconds": 1e9}
    run = Run(shards, tmp_path, outage=outage, max_failures=0, steps=100_000)
    begin = time.monotonic()
    code, printed = run.end(300)
    assert time.monotonic() - begin < 31 + 60 + 60  # until the outage, its tries, and a minute
    assert code == 3, printed[-3000:]
    reasons = re.findall(r"^error: .*failed 1 times in a row .*: rank 1: OSError: .*out of reach.*$", printed, re.M)
    assert len(reasons) == 1
    assert not workers_here()
    how = f"tried for 31 s; {time.monotonic() - begin:.0f} s after its checkpoint all ranks had ended with one reason"
    ended(record_property, "storage out of reach of one rank for good", how, str(run.folder))


def test_a_worker_that_is_stopped(shards: str, whole: Path, tmp_path: Path, record_property: Note) -> None:
    run = Run(shards, tmp_path, hang_seconds=15)
    begin = time.monotonic()
    trains_now(run.folder).send_signal(signal.SIGSTOP)
    while watchdog.last_reason(str(run.folder), 0) is None:
        assert run.process.poll() is None and time.monotonic() - begin < 300, run.end()[1][-6000:]
        time.sleep(0.5)
    found = time.monotonic() - begin
    code, printed = run.end()
    assert code == 0, printed[-3000:]
    reason = watchdog.last_reason(str(run.folder), 0)
    assert reason is not None and "does not answer: stopped, or its machine is gone" in reason
    assert "restart 1 of 10" in printed
    how = f"named after {found:.0f} s (of 15 that were given), started again"
    survives(record_property, "SIGSTOP of a worker", how, run=str(run.folder), undisturbed=str(whole))
    assert weights_of(run.folder, STEPS) == weights_of(whole, STEPS)


def test_a_driver_that_is_killed_is_submitted_again(
    shards: str, whole: Path, tmp_path: Path, record_property: Note
) -> None:
    run = Run(shards, tmp_path, "--resubmit", min_workers=1)
    driver = psutil.Process(run.process.pid).children()[0]
    driver.kill()
    code, printed = run.end()
    assert code == 0, printed[-3000:]
    assert "the driver died of SIGKILL" in printed
    fault, how = "SIGKILL of the driver of two workers", "submitted again by --resubmit"
    survives(record_property, fault, how, run=str(run.folder), undisturbed=str(whole))
    assert weights_of(run.folder, STEPS) == weights_of(whole, STEPS)
