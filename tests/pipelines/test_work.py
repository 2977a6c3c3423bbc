"""Passes over partitions: order, resuming, and mistakes that tasks find."""

import json
import pickle
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from pipelines.stages.work import Partition, Stage, counts, run, runner

pytestmark = pytest.mark.usefixtures("ray_session")


def doubling() -> Callable[..., dict[str, Any]]:
    """A partition's work; a local function travels to the workers by value, since they cannot import this file."""

    def double(partition: int, *, folder: str, bad: int | None) -> dict[str, Any]:
        if partition == bad:
            raise ValueError(f"partition {partition} is bad")
        with Path(folder, f"calls-{partition}").open("a") as file:
            file.write("x")
        return {"double": 2 * partition}

    return double


def calls(folder: Path) -> dict[int, int]:
    return {int(p.name.removeprefix("calls-")): len(p.read_text()) for p in folder.glob("calls-*")}


def test_results_come_in_order_and_finished_partitions_are_not_done_again(tmp_path: Path) -> None:
    stage = Stage(name="double", markers=str(tmp_path / "markers"))
    partitions, sizes = list(range(9)), [1] * 9
    with pytest.raises(ValueError, match=r"^partition 8 is bad$"):
        run(stage, partitions, doubling(), sizes=sizes, shared={"folder": str(tmp_path), "bad": 8})
    done = {int(p.stem) for p in (tmp_path / "markers/double").iterdir()}
    assert done and 8 not in done
    results = run(stage, partitions, doubling(), sizes=sizes, shared={"folder": str(tmp_path), "bad": None})
    assert results == [{"double": 2 * p} for p in partitions]
    assert calls(tmp_path) == dict.fromkeys(partitions, 1)


def test_shared_references_arrive_as_values(tmp_path: Path) -> None:
    import ray

    stage = Stage(name="double", markers=str(tmp_path / "markers"))
    shared = {"folder": ray.put(str(tmp_path)), "bad": None}
    assert run(stage, [4], doubling(), sizes=[1], shared=shared) == [{"double": 8}]


def test_totals_are_counts_over_all_partitions() -> None:
    drawn = [np.random.default_rng(i).integers(0, 50, 7 * i).astype(np.int32) for i in range(20)]  # the first is empty

    def entries_of(partition: Partition) -> np.ndarray:
        return drawn[partition.index]

    partitions = [Partition(index=i, file="", name="", size=1) for i in range(20)]
    expected = np.bincount(np.concatenate(drawn), minlength=60)
    assert counts.total(partitions, entries_of, 60).tolist() == expected.tolist()


@pytest.mark.parametrize(("partitions", "cpus"), [(1, 2), (3, 2), (8, 2), (200, 2), (5_000, 16), (200_000, 1_000)])
def test_tasks_are_long_at_first_and_end_together(partitions: int, cpus: int) -> None:
    sizes = runner.task_sizes(partitions, cpus)
    assert sum(sizes) == partitions and min(sizes) > 0 and sizes[:-1] == sorted(sizes[:-1], reverse=True)
    assert sizes[0] <= runner.PARTITIONS and len(sizes) >= min(partitions, 2 * cpus)
    assert sizes[-1] <= -(-partitions // (4 * cpus))  # not so long that the others wait for it


def test_a_task_that_was_begun_by_a_worker_that_died_does_only_what_is_left(tmp_path: Path) -> None:
    stage = Stage(name="double", markers=str(tmp_path / "markers"))
    shared = {"folder": str(tmp_path), "bad": None}
    task = pa.table({"index": list(range(6)), "partition": [pickle.dumps(partition) for partition in range(6)]})
    attempt = runner.perform(task, stage=stage, function=doubling(), shared=shared)
    assert isinstance(attempt, Generator)
    first = next(attempt)  # of HANDED_OVER partitions; the worker dies
    attempt.close()
    again = list(runner.perform(task, stage=stage, function=doubling(), shared=shared))
    assert again[0].equals(first)  # Ray drops what it has from the first attempt: parts have to be the same
    found = [tuple(pair) for part in again for pair in json.loads(part["results"][0].as_py())]
    assert found == [(partition, {"double": 2 * partition}) for partition in range(6)]
    assert calls(tmp_path) == dict.fromkeys(range(6), 1)
