"""What Ray Train adds to a training step: the same run by its workers and by plain processes of PyTorch, with ratios.

    uv run tests/benchmarks/bench_ray_share.py

Both train llip_tiny_k8 by the same loop over gloo, draw a bar and save. They take turns. What is measured lies between
two checkpoints, so that no start-up counts: wall time, CPU time of the processes that train, which other programs of
the machine weigh little on, and how many cores all other processes keep busy (Ray's daemons, its controller). Each rank
is held to one core. Where ranks take all cores of a machine, Ray's other processes take their share from them, which a
machine with a core to spare does not see: `--ranks` says which is measured.
"""

import json
import os
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Literal, NamedTuple

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ |= {"RAY_worker_niceness": "0"}  # else Ray makes its workers nicer, which wait longer where it is busy

import psutil
import ray
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
import tyro

from llip.fields import override
from llip.recipes import recipe
from pipelines import command, launching, prepare_data

EVERY = 10
"""Steps between checkpoints."""

Side = Literal["Ray Train", "PyTorch"]


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How much is measured."""

    ranks: int = 1
    """Processes that train together, each on a core of its own."""
    steps: int = 120
    """Steps of a run; all but the first and the last 10 are measured."""
    rounds: int = 3
    """Runs of each kind."""


class Moment(NamedTuple):
    """Of a run, at one of its checkpoints."""

    step: int
    wall: float
    """Seconds."""
    ranks: float
    """CPU seconds of the processes that train."""
    others: float
    """CPU seconds of all others that the program started, and its own."""


def ranks_here(title: str) -> list[psutil.Process]:
    """Processes that train: those with `title` in their command line."""
    found = []
    for process in psutil.Process().children(recursive=True):
        with suppress(psutil.Error):  # it has just ended
            found += [process] if title in " ".join(process.cmdline()) else []
    return found


def hold(processes: list[psutil.Process]) -> None:
    """Give each process one core: its threads so far, and those that they start."""
    for core, process in enumerate(sorted(processes, key=lambda p: p.pid)):
        with suppress(psutil.Error, OSError):
            for thread in process.threads():
                os.sched_setaffinity(thread.id, {core})


def with_ray(run: launching.Run, ranks: int) -> None:
    command.start_ray()
    launching.fit(run, workers=ranks)
    ray.shutdown()


def without(run: launching.Run, ranks: int) -> None:
    mp.spawn(rank_alone, (run, ranks), nprocs=ranks)


SIDES: dict[Side, tuple[Callable[[launching.Run, int], None], str]] = {
    "Ray Train": (with_ray, "RayTrainWorker"),
    "PyTorch": (without, "spawn_main"),
}
"""What trains, and what the command lines of its ranks hold."""


def rank_alone(rank: int, run: launching.Run, ranks: int) -> None:
    """What one of the ranks does, started by torch.multiprocessing."""
    torch.set_num_threads(max(1, len(os.sched_getaffinity(0)) // ranks))
    dist.init_process_group("gloo", init_method=f"file://{run.folder}.store", rank=rank, world_size=ranks)
    launching.train_and_evaluate(run, progress=launching.silent)
    dist.destroy_process_group()


def cpu_seconds(title: str) -> tuple[float, float]:
    """Of the processes that have `title` in their command line, and of all others here."""
    spent = [0.0, 0.0]
    for process in [psutil.Process(), *psutil.Process().children(recursive=True)]:
        with suppress(psutil.Error):  # it has just ended
            times, command_line = process.cpu_times(), " ".join(process.cmdline())
            spent[title not in command_line] += times.user + times.system
    return spent[0], spent[1]


@contextmanager
def watching(folder: str, title: str, steps: tuple[int, int]) -> Iterator[list[Moment]]:
    """The moments at which the run in a folder has saved these steps."""
    pointer, moments = Path(folder) / "checkpoints" / "latest.json", list[Moment]()

    def watch() -> None:
        for step in steps:
            while not pointer.exists() or (saved := json.loads(pointer.read_text())["step"]) < step:
                if not moments:
                    hold(ranks_here(title))
                time.sleep(0.02)
            moments.append(Moment(saved, time.perf_counter(), *cpu_seconds(title)))

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    yield moments
    thread.join()


def measured(side: Side, run: launching.Run, ranks: int) -> tuple[float, float, float]:
    """Wall and CPU seconds of a step of a run, and the cores that all but its ranks keep busy."""
    work, title = SIDES[side]
    with watching(run.folder, title, (EVERY, run.config.total_steps - EVERY)) as moments:
        work(run, ranks)
    first, last = moments
    steps, wall = last.step - first.step, last.wall - first.wall
    return wall / steps, (last.ranks - first.ranks) / steps, (last.others - first.others) / wall


def main(settings: Settings) -> None:
    found: dict[Side, list[tuple[float, float, float]]] = {"Ray Train": [], "PyTorch": []}
    with tempfile.TemporaryDirectory() as folder:
        shards = prepare_data.prepare(folder, pool=None, shards=None, evaluation=None, corpus_images=1024).shards
        ray.shutdown()
        config = override(recipe("llip_tiny_k8"), {"steps": settings.steps, "checkpoint_every": EVERY})
        for number in range(settings.rounds):
            for side, rounds in found.items():
                run = launching.Run(config=config, shards=shards, folder=f"{folder}/{side}-{number}")
                rounds.append(measured(side, run, settings.ranks))
                print(f"{side}: %.3f s and %.3f CPU seconds a step, %.2f other cores" % rounds[-1], flush=True)
    for kind, name in enumerate(("wall time", "CPU time")):
        ratios = [ours[kind] / plain[kind] for ours, plain in zip(*found.values(), strict=True)]
        print(f"{name} of a step: {median(ratios):.3f} ({min(ratios):.3f} – {max(ratios):.3f}) times that of PyTorch")


if __name__ == "__main__":
    main(tyro.cli(Settings, description="Measure what Ray Train adds to a training step."))
