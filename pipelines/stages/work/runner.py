"""Runs one pass over partitions on Ray Data. A partition leaves a marker when it is done; a run after an interruption
skips it."""

import hashlib
import json
import logging
import math
import pickle
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

import pyarrow as pa

from llip import storage
from llip.progress import bar as progress_bar

Item = TypeVar("Item")
Result = TypeVar("Result")
PARTITIONS = 128
"""Most partitions of a task. A worker is idle for 0.1 to 0.2 s until Ray Data gives it its next task."""
SHARE = 0.75
"""Next task of a worker, as a fraction of its share of what is left."""
LEAST = 1 / 8
"""Smallest task, as a fraction of a worker's share."""
HANDED_OVER = 4
"""Partitions whose results a task hands over at a time: a progress bar should not wait for a whole task."""
THREADS = 16
"""Requests in flight where the driver touches many small objects."""


@dataclass(frozen=True, kw_only=True)
class Stage:
    """One pass over partitions."""

    name: str
    """Shown beside the progress bar, and the folder of the markers."""
    markers: str
    """Folder that keeps the result of every finished partition."""
    noun: str = "rows"
    """Noun of what the progress bar counts."""

    def marker(self, index: int) -> str:
        return storage.join(self.markers, self.name, f"{index:06d}.json")

    def finish(self, index: int, result: dict[str, Any]) -> None:
        """Keep the result of a partition: it is done."""
        storage.write_json(self.marker(index), {"index": index, "result": result})

    def finished(self, index: int) -> dict[str, Any] | None:
        """The result of a partition that is done; None of one that is not."""
        try:
            return storage.read_json(self.marker(index))["result"]
        except FileNotFoundError:
            return None


def digest(value: Any) -> str:
    """Short name of a JSON value."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]


def concurrently(function: Callable[[Item], Result], items: Sequence[Item]) -> list[Result]:
    """`function` of every item, in order, on threads: for requests that wait on storage."""
    with ThreadPoolExecutor(THREADS) as pool:
        return list(pool.map(function, items))


def run(
    stage: Stage,
    partitions: Sequence[Any],
    function: Callable[..., dict[str, Any]],
    *,
    sizes: Sequence[int],
    shared: dict[str, Any] | None = None,
    gpu: bool = False,
) -> list[dict[str, Any]]:
    """Results (JSON values) of `function(partition, **shared)` for every partition, in order, by Ray Data tasks.

    `sizes` are what the progress bar adds up. `shared` may hold object references, which the function gets by value.
    With `gpu` every task has a GPU of its own. A partition is tried again where a storage fails. A ValueError in a
    task, or a failure that stays, ends the run with its message.
    """
    results = _finished(stage, len(partitions))
    todo = [i for i in range(len(partitions)) if i not in results]
    with progress_bar(total=sum(sizes), desc=stage.name, unit=" " + stage.noun, unit_scale=True) as bar:
        bar.update(sum(sizes[i] for i in results))
        if todo:
            work = partial(perform, stage=stage, function=function, shared=shared or {})
            for row in _dataset([(i, partitions[i]) for i in todo], work, gpu).iter_rows():
                if row["error"]:
                    raise ValueError(row["error"])
                for index, result in json.loads(row["results"]):
                    results[index] = result
                    bar.update(sizes[index])
    return [results[i] for i in range(len(partitions))]


def _finished(stage: Stage, count: int) -> dict[int, dict[str, Any]]:
    found = storage.listing(storage.join(stage.markers, stage.name), ".json")
    done = concurrently(storage.read_json, found)
    return {row["index"]: row["result"] for row in done if row["index"] < count}


def _dataset(partitions: Sequence[tuple[int, Any]], work: Callable[[pa.Table], Iterator[pa.Table]], gpu: bool) -> Any:
    import ray

    for name in ("execution.streaming_executor", "progress"):  # plans and finish lines of every stage
        logging.getLogger(f"ray.data._internal.{name}").setLevel(logging.ERROR)
    context = ray.data.DataContext.get_current().copy()
    context.enable_progress_bars = False  # they count blocks; ours counts rows
    context.target_max_block_size = 1  # what a task hands over leaves it at once
    tasks, begin = [], 0
    for size in task_sizes(len(partitions), worker_count(len(partitions), "GPU" if gpu else "CPU")):
        part = partitions[begin : begin + size]
        tasks.append(
            pa.table({"index": [i for i, _ in part], "partition": [pickle.dumps(partition) for _, partition in part]})
        )
        begin += size
    with ray.data.DataContext.current(context):
        return ray.data.from_arrow(tasks).map_batches(
            work, batch_size=None, batch_format="pyarrow", num_gpus=1 if gpu else None
        )


def worker_count(partitions: int, resource: str = "CPU") -> int:
    """Number of tasks that run at a time, each on one of a resource."""
    import ray

    return min(partitions, int(ray.cluster_resources().get(resource, 1)))


def task_sizes(partitions: int, workers: int) -> list[int]:
    """Number of partitions of each task: long tasks first, since every task costs its worker a pause, then shorter
    ones, which end together."""
    sizes = []
    least = math.ceil(LEAST * partitions / workers)
    while partitions:
        size = min(PARTITIONS, max(least, int(SHARE * partitions / workers)))
        sizes.append(partitions if partitions < size + least // 2 else size)
        partitions -= sizes[-1]
    return sizes


def perform(
    partitions: pa.Table, *, stage: Stage, function: Callable[..., dict[str, Any]], shared: dict[str, Any]
) -> Iterator[pa.Table]:
    """One task: do its partitions, in order, and hand over their results, HANDED_OVER partitions at a time."""
    import ray

    values = {k: ray.get(v) if isinstance(v, ray.ObjectRef) else v for k, v in shared.items()}
    indices = partitions["index"].to_pylist()
    again = stage.finished(indices[0]) is not None  # another worker began this task, and died
    results: list[tuple[int, dict[str, Any]]] = []
    for index, partition in zip(indices, partitions["partition"], strict=True):
        result = stage.finished(index) if again else None
        if result is None:
            try:
                call = partial(function, pickle.loads(partition.as_py()), **values)
                result = storage.patient(call, f"{stage.name}, partition {index}")
            except (ValueError, *storage.FAILURES) as error:
                # handed over as a value: what a user can mend needs no traceback of a remote task
                yield _handed_over([], str(error))
                return
            stage.finish(index, result)
        results.append((index, result))
        if len(results) == HANDED_OVER or index == indices[-1]:
            yield _handed_over(results)
            results = []


def _handed_over(results: list[tuple[int, dict[str, Any]]], error: str = "") -> pa.Table:
    return pa.table({"results": [json.dumps(results)], "error": [error]})
