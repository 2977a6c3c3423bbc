"""The checks of a GPU, run where there is none."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.slow
def test_every_check_runs_at_tiny_size(tmp_path: Path) -> None:
    output = tmp_path / "device.json"
    command = [sys.executable, str(Path(__file__).parent / "run.py"), "--device", "cpu", "--output", str(output)]
    done = subprocess.run(command, env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    names = [row["name"] for row in json.loads(output.read_text())["rows"]]
    for name in ("step, FSDP2 on one rank", "pairs, softmax, fused, Gram", "llip_tiny_k8, pair stage"):
        assert name in names


@pytest.mark.slow
def test_without_a_gpu_it_says_so() -> None:
    command = [sys.executable, str(Path(__file__).parent / "run.py")]
    done = subprocess.run(command, env=os.environ | {"CUDA_VISIBLE_DEVICES": ""}, capture_output=True, text=True)
    assert done.returncode == 2 and "--device cpu" in done.stderr
