"""Killed and started again, a run ends as if nothing had happened."""

import itertools
import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import ray
from helpers.faults import samples, survives
from helpers.noted_pretrain import noted
from helpers.noted_runs import (
    CHECKPOINT_EVERY,
    KILL_AFTER,
    STEPS,
    command,
    parts,
    wait_for_checkpoint,
    weights_of,
    workers_here,
)
from ray.cluster_utils import Cluster

from llip.config import TrainingConfig
from llip.fields import from_dict
from llip.runs.stopping import StoppedError
from llip.runs.tracking import Tracker, read_metrics
from llip.training import checkpoint
from llip.training.loop import train
from llip.training.parallel import single_process

pytestmark = pytest.mark.slow
Note = Callable[[str, object], None]


@pytest.fixture(scope="module")
def whole(shards: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run folder of an undisturbed run of one process."""
    output = tmp_path_factory.mktemp("whole")
    subprocess.run(command(shards, output), check=True)
    return output / "runs" / "run"


def _interrupt(shards: str, output: Path, number: signal.Signals) -> int:
    """Start a run, send it a signal some steps after a checkpoint, and wait for its end. Returns its exit code."""
    process = subprocess.Popen(command(shards, output))
    wait_for_checkpoint(output / "runs" / "run", process, step=KILL_AFTER, workers=1)
    time.sleep(0.5)
    os.kill(process.pid, number)
    return process.wait()


def _go_on(shards: str, output: Path) -> str:
    """Run the same command again, to the end. Returns what it prints."""
    done = subprocess.run(command(shards, output), check=True, capture_output=True, text=True)
    return done.stdout + done.stderr


@pytest.mark.timeout(600)
def test_sigkill_in_the_middle_of_training(shards: str, whole: Path, tmp_path: Path, record_property: Note) -> None:
    killed = tmp_path / "runs" / "run"
    assert _interrupt(shards, tmp_path, signal.SIGKILL) == -signal.SIGKILL
    assert read_metrics(str(killed))[-1]["step"] < STEPS
    assert "going on after step" in _go_on(shards, tmp_path)
    ended = "killed; the same command went on to the end"
    survives(record_property, "SIGKILL of the driver", ended, run=str(killed), undisturbed=str(whole))
    assert weights_of(killed) == weights_of(whole)


@pytest.mark.timeout(600)
def test_sigterm_saves_first_and_a_damaged_checkpoint_gives_way(
    shards: str, whole: Path, tmp_path: Path, record_property: Note
) -> None:
    stopped = tmp_path / "runs" / "run"
    assert _interrupt(shards, tmp_path, signal.SIGTERM) == 128 + signal.SIGTERM
    steps = [json.loads(path.read_text())["step"] for path in stopped.glob("checkpoints/step-*/state.json")]
    last = max(steps)
    assert KILL_AFTER <= last < STEPS

    output = tmp_path / "damaged"
    damaged = output / "runs" / "run"
    shutil.copytree(stopped, damaged)
    weights = damaged / "checkpoints" / f"step-{last:08d}" / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)

    assert f"going on after step {last}" in _go_on(shards, tmp_path)
    ended = "saved first, exit code 143; the same command went on to the end"
    survives(record_property, "SIGTERM", ended, run=str(stopped), undisturbed=str(whole))
    assert f"going on after step {min(steps)}" in _go_on(shards, output)
    ended = "went on from the checkpoint before it to the end"
    survives(record_property, "newest checkpoint damaged", ended, run=str(damaged), undisturbed=str(whole))
    assert weights_of(stopped) == weights_of(damaged) == weights_of(whole)


@pytest.mark.timeout(900)
@pytest.mark.soak
def test_sigkill_of_a_worker(
    shards: str, tmp_path: Path, record_property: Note, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", ray.get_runtime_context().gcs_address)
    killed, whole = tmp_path / "runs" / "killed", tmp_path / "runs" / "whole"
    subprocess.run(command(shards, tmp_path, "whole", workers=2), check=True)
    process = subprocess.Popen(command(shards, tmp_path, "killed", workers=2))
    wait_for_checkpoint(killed, process, step=KILL_AFTER, workers=2)
    workers_here()[-1].kill()
    assert process.wait() == 0
    ended = "Ray Train started the workers again; exit code 0"
    survives(record_property, "SIGKILL of a worker", ended, run=str(killed), undisturbed=str(whole))
    assert weights_of(killed) == weights_of(whole)


@pytest.fixture
def nodes(monkeypatch: pytest.MonkeyPatch) -> Iterator[Cluster]:
    """A head node without CPUs, where the driver runs, and two nodes of two CPUs on this machine; addresses differ."""
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    monkeypatch.setenv("RAY_ADDRESS", cluster.address)
    monkeypatch.setenv("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", "5")  # else a minute for a node that is lost
    try:
        for number in range(2):
            cluster.add_node(num_cpus=2, node_ip_address=f"127.0.0.{2 + number}")
        yield cluster
    finally:
        cluster.shutdown()


@pytest.mark.timeout(900)
@pytest.mark.soak
def test_a_node_is_killed_and_another_joins(shards: str, nodes: Cluster, tmp_path: Path, record_property: Note) -> None:
    """Shards lie inside a node and are replicated across nodes (HSDP), as long as there are two."""
    run, undisturbed = tmp_path / "runs" / "run", str(tmp_path / "undisturbed")
    options = command(shards, tmp_path, workers=4, min_workers=2, steps=10_000)
    process = subprocess.Popen([*options, "--parallel", "hsdp"])
    try:
        step = _wait_for_ranks(run, process, after=CHECKPOINT_EVERY, ranks=4)
        assert parts(run)[1] == 2  # of a node's two; the other node's are the same
        nodes.remove_node(next(iter(nodes.worker_nodes)), allow_graceful=False)
        step = _wait_for_ranks(run, process, after=step, ranks=2)
        nodes.add_node(num_cpus=2, node_ip_address="127.0.0.4")
        _wait_for_ranks(run, process, after=step, ranks=4)
        process.terminate()
        assert process.wait() == 128 + signal.SIGTERM
    finally:
        process.kill()

    steps = parts(run)[0]
    _train_alone(run, steps, undisturbed)
    assert len(samples(undisturbed)) == steps
    ended = "went on with 4, 2 and 4 workers, until SIGTERM"
    survives(
        record_property,
        "SIGKILL of a node, later a new one",
        ended,
        run=str(run),
        undisturbed=undisturbed,
        tolerance=1e-5,
    )


def _wait_for_ranks(run: Path, process: subprocess.Popen[bytes], *, after: int, ranks: int) -> int:
    """Wait until a checkpoint after a step was written by this many ranks. Returns its step."""
    deadline = time.monotonic() + 600
    while True:
        assert process.poll() is None and time.monotonic() < deadline, f"no checkpoint of {ranks} ranks"
        step = parts(run)[0]
        # Steps are numbered from 0 where they are noted. Of a step that was made again, several groups noted samples.
        pids = {path.stem.split("-")[1] for path in (run / "samples").glob(f"{step - 1:08d}-*.json")}
        if step > after and len(pids) == ranks:
            return step
        time.sleep(0.01)


def _train_alone(run: Path, steps: int, folder: str) -> None:
    """Train what another run trains, in this process, for its first steps."""
    known = json.loads((run / "config.json").read_text())
    answers = itertools.count(1)
    with noted(folder), Tracker(None, folder) as tracker, pytest.raises(StoppedError):
        train(
            from_dict(TrainingConfig, known["training"]),
            shards=known["shards"],
            folder=folder,
            world=single_process(),
            tracker=tracker,
            stop=lambda: next(answers) == steps,
        )
    assert checkpoint.step_of(checkpoint.latest(folder) or "") == steps
