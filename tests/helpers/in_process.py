"""Stages in this process, without Ray: for what a stage does, where it does not matter who runs it."""

import pickle
import sys
from collections.abc import Callable, Iterator, Sequence
from types import SimpleNamespace
from typing import Any

import pyarrow as pa
import pytest
from ray import cloudpickle

from pipelines.stages.work import runner


def _dataset(partitions: Sequence[tuple[int, Any]], work: Callable[[pa.Table], Iterator[pa.Table]], gpu: bool) -> Any:
    """One task of all partitions, done here. Its work is pickled and back: what cannot travel fails here too."""
    task = pa.table(
        {"index": [i for i, _ in partitions], "partition": [pickle.dumps(partition) for _, partition in partitions]}
    )
    sent = cloudpickle.loads(cloudpickle.dumps(work))
    return SimpleNamespace(iter_rows=lambda: (row for part in sent(task) for row in part.to_pylist()))


def without_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make the data jobs run here: their passes are those of any run, but for who does the tasks."""
    monkeypatch.setattr(runner, "_dataset", _dataset)
    fake = SimpleNamespace(
        put=lambda value: value,
        get=lambda values: values,
        is_initialized=lambda: True,
        cluster_resources=lambda: {"CPU": 1},
        remote=lambda function: SimpleNamespace(remote=function),
        ObjectRef=type("ObjectRef", (), {}),
        cloudpickle=cloudpickle,
    )
    monkeypatch.setitem(sys.modules, "ray", fake)
