"""Units of work over Ray Data: each is done once, leaves a marker when done, and is skipped by a run that comes
after an interruption."""

import hashlib
import json
import logging
import pickle
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

from tqdm import tqdm

from llip import storage

Item = TypeVar("Item")
Result = TypeVar("Result")
UNITS = 8
"""Most units of a task: starting one costs Ray Data about 20 ms."""
TASKS = 4
"""Fewest tasks for each CPU, as long as there are units for them: the last ones end together."""
THREADS = 16
"""Requests in flight where the driver touches many small objects."""


@dataclass(frozen=True, kw_only=True)
class Stage:
    """One pass over units of work."""

    name: str
    """Shown beside the progress bar, and the folder of the markers."""
    markers: str
    """Folder that keeps the result of every finished unit."""
    noun: str = "rows"
    """What the progress bar counts."""

    def marker(self, index: int) -> str:
        return storage.join(self.markers, self.name, f"{index:06d}.json")


def digest(value: Any) -> str:
    """Short name of a JSON value."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]


def concurrently(function: Callable[[Item], Result], items: Sequence[Item]) -> list[Result]:
    """`function` of every item, in order, on threads: for requests that wait on storage."""
    with ThreadPoolExecutor(THREADS) as pool:
        return list(pool.map(function, items))


def run(
    stage: Stage,
    units: Sequence[Any],
    function: Callable[..., dict[str, Any]],
    *,
    sizes: Sequence[int],
    shared: dict[str, Any] | None = None,
) -> list[dict[str, Any]]:
    """Results (JSON values) of `function(unit, **shared)` for every unit, in order, computed by Ray Data tasks.

    `sizes` are what the progress bar adds up. `shared` may hold object references, which the function gets by value. A
    ValueError in a task ends the run with its message.
    """
    results = _finished(stage, len(units))
    todo = [i for i in range(len(units)) if i not in results]
    with tqdm(total=sum(sizes), desc=stage.name, unit=" " + stage.noun, unit_scale=True, file=sys.stderr) as bar:
        bar.update(sum(sizes[i] for i in results))
        if todo:
            items = [{"index": i, "unit": pickle.dumps(units[i])} for i in todo]
            perform = partial(_perform, stage=stage, function=function, shared=shared or {})
            for row in _dataset(items, perform).iter_rows():
                if row["error"]:
                    raise ValueError(row["error"])
                results[row["index"]] = json.loads(row["result"])
                bar.update(sizes[row["index"]])
    return [results[i] for i in range(len(units))]


def _finished(stage: Stage, count: int) -> dict[int, dict[str, Any]]:
    found = storage.listing(storage.join(stage.markers, stage.name), ".json")
    done = concurrently(storage.read_json, found)
    return {row["index"]: row["result"] for row in done if row["index"] < count}


def _dataset(items: list[dict[str, Any]], perform: Callable[[dict[str, Any]], dict[str, Any]]) -> Any:
    import ray

    for name in ("execution.streaming_executor", "progress"):  # plans and finish lines of every stage
        logging.getLogger(f"ray.data._internal.{name}").setLevel(logging.ERROR)
    context = ray.data.DataContext.get_current().copy()
    context.enable_progress_bars = False  # they count blocks; ours counts rows
    tasks = max(-(-len(items) // UNITS), min(len(items), TASKS * int(ray.cluster_resources().get("CPU", 1))))
    with ray.data.DataContext.current(context):
        return ray.data.from_items(items, override_num_blocks=tasks).map(perform)


def _perform(
    item: dict[str, Any], *, stage: Stage, function: Callable[..., dict[str, Any]], shared: dict[str, Any]
) -> dict[str, Any]:
    import ray

    values = {k: ray.get(v) if isinstance(v, ray.ObjectRef) else v for k, v in shared.items()}
    try:
        result = function(pickle.loads(item["unit"]), **values)
    except ValueError as error:  # handed over as a value: a user's mistake needs no traceback of a remote task
        return {"index": item["index"], "result": "", "error": str(error)}
    storage.write_json(stage.marker(item["index"]), {"index": item["index"], "result": result})
    return {"index": item["index"], "result": json.dumps(result), "error": ""}
