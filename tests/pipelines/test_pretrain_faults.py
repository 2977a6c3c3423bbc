"""Killed and started again, a run ends as if nothing had happened."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import psutil
import pytest

from llip.training import record
from pipelines import chain
from pipelines.pretrain import Pretrain, pretrain

pytestmark = pytest.mark.slow
STEPS, CHECKPOINT_EVERY, KILL_AFTER = 60, 10, 20


@pytest.fixture(scope="module")
def shards(ray_session: None, tmp_path_factory: pytest.TempPathFactory) -> str:
    output = str(tmp_path_factory.mktemp("faults"))
    return chain.prepare(output, pool=None, shards=None, evaluation=None, corpus_images=192).shards


def _numbers(folder: Path) -> list[tuple[float, ...]]:
    names = ("step", "loss", "gradient_norm", "logit_scale", "logit_bias", "learning_rate", "samples")
    return [tuple(line[name] for name in names) for line in record.read(str(folder))]


def _weights(folder: Path) -> bytes:
    return (folder / "checkpoints" / f"step-{STEPS:08d}" / "model.safetensors").read_bytes()


def _wait_for_checkpoint(folder: Path, step: int) -> None:
    pointer = folder / "checkpoints" / "latest.json"
    deadline = time.monotonic() + 240
    while not pointer.exists() or json.loads(pointer.read_text())["step"] < step:
        assert time.monotonic() < deadline, "no checkpoint in time"
        time.sleep(0.01)


def _command(shards: str, output: Path) -> list[str]:
    options = {"shards": shards, "output": output, "name": "run", "steps": STEPS, "workers": 0}
    options["checkpoint-every"] = CHECKPOINT_EVERY
    return [sys.executable, "pipelines/pretrain.py", *(str(x) for k, v in options.items() for x in (f"--{k}", v))]


@pytest.mark.timeout(600)
def test_sigkill_in_the_middle_of_training(shards: str, tmp_path: Path) -> None:
    whole, killed = (tmp_path / name / "runs" / "run" for name in ("whole", "killed"))
    subprocess.run(_command(shards, tmp_path / "whole"), check=True)

    victim = subprocess.Popen(_command(shards, tmp_path / "killed"))
    _wait_for_checkpoint(killed, KILL_AFTER)
    time.sleep(0.5)  # some steps beyond the checkpoint
    os.kill(victim.pid, signal.SIGKILL)
    victim.wait()
    assert record.read(str(killed))[-1]["step"] < STEPS
    done = subprocess.run(_command(shards, tmp_path / "killed"), check=True, capture_output=True, text=True)
    assert f"going on after step {KILL_AFTER}" in done.stdout

    assert _numbers(killed) == _numbers(whole)
    assert _weights(killed) == _weights(whole)


@pytest.mark.timeout(900)
def test_sigkill_of_a_worker(shards: str, tmp_path: Path) -> None:
    def settings(name: str) -> Pretrain:
        return Pretrain(
            output=str(tmp_path), shards=shards, name=name, steps=STEPS, checkpoint_every=CHECKPOINT_EVERY, workers=2
        )

    killed_pids = []

    def kill_a_worker() -> None:
        _wait_for_checkpoint(tmp_path / "runs" / "killed", KILL_AFTER)
        workers = [p for p in psutil.Process().children(recursive=True) if "RayTrainWorker" in " ".join(p.cmdline())]
        killed_pids.append(workers[-1].pid)
        workers[-1].kill()

    pretrain(settings("whole"))
    killer = threading.Thread(target=kill_a_worker)
    killer.start()
    pretrain(settings("killed"))
    killer.join()

    assert killed_pids
    runs = tmp_path / "runs"
    assert _numbers(runs / "killed") == _numbers(runs / "whole")
    assert _weights(runs / "killed") == _weights(runs / "whole")
