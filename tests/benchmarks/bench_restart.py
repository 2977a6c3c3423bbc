"""From the kill of a worker to the next step: what the seconds go to.

    uv run tests/benchmarks/bench_restart.py --workers 2 4

A worker of a run of that many on this machine is killed, and the run goes on. Noticing lasts until Ray Train knows of
it; processes until all workers have started again and train; start-up until model and loader are there. Redone steps
are those since the checkpoint, which the run writes every ten steps.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("RAY_ENABLE_UV_RUN_RUNTIME_ENV", "0")

import ray
from helpers.noted_runs import CHECKPOINT_EVERY, command, parts, trains_now, wait_for_checkpoint
from helpers.shard_folders import row, write_shards

COLUMNS = ("noticing", "processes", "start-up", "restore", "first step", "in all", "redone steps")
NOTICED = "restart 1 of"


def killed(shards: str, folder: Path, workers: int) -> dict[str, float]:
    """Seconds of each part."""
    run, log = folder / "runs" / "run", folder / "log"
    folder.mkdir()
    with log.open("wb") as output:
        process = subprocess.Popen(
            command(shards, folder, workers=workers, steps=100_000), stdout=output, stderr=output
        )
    try:
        step = wait_for_checkpoint(run, process, step=2 * CHECKPOINT_EVERY, workers=workers)
        before = _samples(run)
        begin = time.time()
        trains_now(run).kill()
        while NOTICED not in log.read_text(errors="replace"):
            assert process.poll() is None and time.time() - begin < 600
            time.sleep(0.02)
        noticed = time.time()
        reached = max(int(name.split("-")[0]) for name in _samples(run))
        while not (new := {n for n in _samples(run) - before if _time(run, n) > noticed}):
            assert process.poll() is None and time.time() - begin < 600
            time.sleep(0.02)
        first = min(_time(run, name) for name in new)
        assert parts(run)[0] >= step
        while len(_attempts(run)) < 2 or _attempts(run)[-1]["step"] == 0:
            assert process.poll() is None and time.time() - begin < 600
            time.sleep(0.1)
        old, own = _attempts(run)
        trains = old["last"] + own["waiting"]
        seconds = own["seconds"]
        return {
            "noticing": noticed - begin,
            "processes": trains - noticed,
            "start-up": seconds["start_up"],
            "restore": seconds["restore"],
            "first step": first - trains - seconds["start_up"] - seconds["restore"],
            "in all": first - begin,
            "redone steps": reached - own["first_step"],
        }
    finally:
        process.terminate()
        process.wait(120)


def _samples(run: Path) -> set[str]:
    return {path.name for path in (run / "samples").glob("*.json")}


def _time(run: Path, name: str) -> float:
    return (run / "samples" / name).stat().st_mtime


def _attempts(run: Path) -> list[dict[str, Any]]:
    return list(json.loads((run / "goodput.json").read_text()))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workers", type=int, nargs="+", default=[2, 4])
    parser.add_argument("--rounds", type=int, default=1)
    arguments = parser.parse_args()
    ray.init(address="local", num_cpus=4, include_dashboard=False, log_to_driver=False)
    os.environ["RAY_ADDRESS"] = ray.get_runtime_context().gcs_address
    with tempfile.TemporaryDirectory() as folder:
        shards = write_shards(Path(folder, "shards"), [row(i) for i in range(512)], files=2, row_group_size=16)
        print("| workers | " + " | ".join(COLUMNS) + " |\n|" + " --- |" * (len(COLUMNS) + 1))
        for workers in arguments.workers:
            rounds = [killed(shards, Path(folder, f"{workers}-{i}"), workers) for i in range(arguments.rounds)]
            medians = (statistics.median(found[name] for found in rounds) for name in COLUMNS)
            print(f"| {workers} | " + " | ".join(f"{median:.1f}" for median in medians) + " |", flush=True)


if __name__ == "__main__":
    main()
