"""Runs of `noted_pretrain` in processes that tests disturb."""

import contextlib
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil

STEPS, CHECKPOINT_EVERY, KILL_AFTER = 60, 10, 20
PROGRAM = Path(__file__).parent / "noted_pretrain.py"

Process = subprocess.Popen[bytes]


def weights_of(folder: Path, steps: int = STEPS) -> dict[str, bytes]:
    """The files of the last checkpoint's model by name: one, or one a worker."""
    files = (folder / "checkpoints" / f"step-{steps:08d}").glob("model*.safetensors")
    found = {path.name: path.read_bytes() for path in files}
    assert found
    return found


def parts(run: Path) -> tuple[int, int]:
    """Step of the newest checkpoint and number of workers that wrote it; zeros where there is none."""
    pointer = run / "checkpoints" / "latest.json"
    newest: dict[str, Any] = {"step": 0, "folder": "none"}
    if pointer.exists():
        newest = json.loads(pointer.read_text())
    return newest["step"], len(list((pointer.parent / newest["folder"]).glob("model*.safetensors")))


def wait_for_checkpoint(run: Path, process: Process, *, step: int, workers: int) -> int:
    """Wait until `workers` workers wrote the newest checkpoint, of `step` or later. Returns its step."""
    deadline = time.monotonic() + 400
    while not (parts(run)[0] >= step and parts(run)[1] == workers):
        assert process.poll() is None and time.monotonic() < deadline, f"no checkpoint of {workers} workers"
        time.sleep(0.01)
    return parts(run)[0]


def workers_here() -> list[psutil.Process]:
    """Ray Train's workers below this process; one that ends while it is looked at is none."""
    found = []
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):
            if "RayTrainWorker" in " ".join(process.cmdline()):
                found.append(process)
    return found


def trains_now(run: Path) -> psutil.Process:
    """A process that trained on the newest samples of a run: workers of a run before may not have ended yet."""
    newest = max((run / "samples").glob("*.json"))
    return psutil.Process(int(newest.stem.split("-")[1]))


def command(shards: str, output: Path, name: str = "run", **options: float) -> list[str]:
    values: dict[str, object] = {"shards": shards, "output": output, "name": name}
    values |= {"steps": STEPS, "workers": 0, "checkpoint_every": CHECKPOINT_EVERY, **options}
    return [sys.executable, str(PROGRAM), *(str(x) for k, v in values.items() for x in (f"--{k}", v))]
