"""`sbatch cluster/slurm.sh` on a Slurm of this machine: a time limit in the middle, Ray's death, a request to stop."""

import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
from helpers.faults import samples, survives
from helpers.noted_runs import PROGRAM, trains_now
from helpers.shard_folders import row, write_shards
from helpers.slurm import slurm

from llip.runs import stopping
from llip.training import checkpoint

ROOT = Path(__file__).parents[2]
STEPS = 200
"""Enough that a quick machine is still training when the test looks."""
PATIENCE = 600
"""Seconds that a part of a test may take: processes of Ray and of training take a minute of a core each."""

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]


class Job:
    """One that was submitted."""

    def __init__(self, variables: dict[str, str], folder: Path, *arguments: str, nodes: int) -> None:
        self._variables, self._log = variables, folder / "log"
        options = [f"--nodes={nodes}", "--gpus-per-node=0", "--cpus-per-task=1", f"--output={self._log}"]
        self.id = self.call("sbatch", "--parsable", *options, "cluster/slurm.sh", *arguments)

    def call(self, *command: str) -> str:
        """A command of Slurm. Returns what it prints."""
        done = subprocess.run(command, cwd=ROOT, env=self._variables, capture_output=True, text=True, check=True)
        return done.stdout.strip()

    def update(self, setting: str) -> None:
        self.call("scontrol", "update", f"JobId={self.id}", setting)

    @property
    def log(self) -> str:
        return self._log.read_text(errors="replace") if self._log.exists() else ""

    @property
    def state(self) -> dict[str, str]:
        """What Slurm says: JobState, ExitCode, Restarts and the like."""
        words = self.call("scontrol", "show", "job", self.id).split()
        return dict(word.split("=", 1) for word in words if "=" in word)

    def wait(self, until: Callable[[], object]) -> None:
        deadline = time.monotonic() + PATIENCE
        while not until():
            assert not self._ended() and time.monotonic() < deadline, self.log[-6000:]
            time.sleep(0.5)

    def wait_for_end(self) -> str:
        """Its exit code."""
        deadline = time.monotonic() + PATIENCE
        while not self._ended():
            assert time.monotonic() < deadline, self.log[-6000:]
            time.sleep(0.5)
        return self.state["ExitCode"]

    def _ended(self) -> bool:
        return self.state["JobState"] in ("COMPLETED", "FAILED", "TIMEOUT", "CANCELLED")


Submit = Callable[..., Job]


@pytest.fixture(scope="module")
def variables(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    with slurm(tmp_path_factory.mktemp("slurm")) as found:
        yield found


@pytest.fixture
def submit(variables: dict[str, str], tmp_path: Path) -> Iterator[Submit]:
    jobs: list[Job] = []

    def submit(name: str, *arguments: str, nodes: int, **environment: str) -> Job:
        (tmp_path / name).mkdir()
        jobs.append(Job(variables | environment, tmp_path / name, *arguments, nodes=nodes))
        return jobs[-1]

    yield submit
    for job in jobs:
        job.call("scancel", "--full", job.id)
        job.wait_for_end()


@pytest.mark.soak
def test_a_job_whose_time_is_nearly_up_saves_is_queued_again_and_ends_as_an_undisturbed_one(
    submit: Submit, tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    """Two workers, each on a node of its own. Slurm looks at limits twice a minute: a worker rests until it has."""
    shards = write_shards(tmp_path / "shards", [row(number) for number in range(192)], files=2, row_group_size=16)
    options = ["--shards", shards, "--batch-size", "32", "--steps", str(STEPS), "--name", "run"]
    program = str(PROGRAM.relative_to(ROOT))
    output = tmp_path / "slurm"
    workers = ["--workers", "2", "--min-workers", "2", "--output", str(output)]
    job = submit("slurm", program, *options, *workers, nodes=2)
    run, alone = str(output / "runs" / "run"), str(tmp_path / "runs" / "run")

    job.wait(lambda: any(Path(run, "samples").glob("*.json")))
    worker = trains_now(Path(run))
    worker.suspend()
    try:
        job.update("TimeLimit=9")  # minutes: fewer than the ten that --signal asks for
        job.wait(lambda: stopping.stop_requested(run))
    finally:
        worker.resume()
    job.wait(lambda: job.state["Restarts"] == "1")
    job.update("TimeLimit=UNLIMITED")
    newest = checkpoint.latest(run)
    assert newest is not None and 0 < checkpoint.step_of(newest) < STEPS
    assert "queued again: the time limit is near" in job.log
    undisturbed = [sys.executable, program, *options, "--workers", "0", "--output", str(tmp_path)]
    subprocess.run(undisturbed, cwd=ROOT, check=True)

    assert job.wait_for_end() == "0:0", job.log[-6000:]
    how = f"saved at step {checkpoint.step_of(newest)}, queued itself again"
    survives(record_property, "Slurm's time limit", how, run=run, undisturbed=alone, tolerance=1e-5)
    assert len(samples(run)) == STEPS


WAITS = """import signal, sys, time
signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
print("waits" + "now", flush=True)
time.sleep(900)"""


def test_two_jobs_share_a_host_and_what_ends_one_is_noticed_at_once(submit: Submit) -> None:
    killed, asked = (submit(name, "-c", WAITS, nodes=1) for name in ("killed", "asked"))
    for job in (killed, asked):
        job.wait(lambda job=job: "waitsnow" in job.log)  # type: ignore[misc]
    (head,) = (p for p in psutil.process_iter(["cmdline"]) if _serves(p, killed))
    head.kill()
    asked.call("scancel", "--signal=TERM", "--batch", asked.id)
    begin = time.monotonic()
    assert (killed.wait_for_end(), asked.wait_for_end()) == ("1:0", "143:0")
    assert time.monotonic() - begin < 60
    assert "error: Ray's head on n1 ended" in killed.log
    assert "error: Ray" not in asked.log


def test_a_driver_that_is_killed_is_queued_again_unless_it_died_soon(submit: Submit) -> None:
    soon = submit("soon", "-c", WAITS, "of soon", nodes=1)
    late = submit("late", "-c", WAITS, "of late", nodes=1, RETRY_AFTER="5")
    for job, mark in ((soon, "of soon"), (late, "of late")):
        job.wait(lambda job=job: "waitsnow" in job.log)  # type: ignore[misc]
        (driver,) = (p for p in psutil.process_iter(["cmdline"]) if _is_driver(p, mark))
        driver.kill()
    assert soon.wait_for_end() == "1:0" and "error: the driver was killed" in soon.log
    late.wait(lambda: late.state["Restarts"] == "1")
    assert "queued again: the driver was killed" in late.log and "queued again" not in soon.log


def _is_driver(process: psutil.Process, mark: str) -> bool:
    """Not Ray's own processes, whose command lines hold that of the driver."""
    words = process.info["cmdline"] or []
    return words[1:] == ["-c", WAITS, mark]


def _serves(process: psutil.Process, job: Job) -> bool:
    return f"--gcs_server_port={20_000 + int(job.id) % 600 * 16}" in (process.info["cmdline"] or [])
