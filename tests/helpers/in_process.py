"""Stages in this process, without Ray: for what a stage does, where it does not matter who runs it."""

import json
import sys
from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import pytest

from pipelines import curate, shard
from pipelines.stages.dedup import deduplicating
from pipelines.stages.match import matched, metadata
from pipelines.stages.work import Stage


def run(
    stage: Stage,
    units: Sequence[Any],
    function: Callable[..., dict[str, Any]],
    *,
    sizes: Sequence[int],
    shared: dict[str, Any] | None = None,
) -> list[dict[str, Any]]:
    """As `passes.run`: results pass through JSON."""
    return [json.loads(json.dumps(function(unit, **(shared or {})))) for unit in units]


def without_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make `curate` and `shard` run here."""
    for module in (curate, shard, matched, metadata, deduplicating):
        monkeypatch.setattr(module, "run", run)
    fake = SimpleNamespace(
        put=lambda value: value,
        get=lambda values: values,
        is_initialized=lambda: True,
        remote=lambda function: SimpleNamespace(remote=function),
    )
    monkeypatch.setitem(sys.modules, "ray", fake)  # type: ignore[arg-type]
