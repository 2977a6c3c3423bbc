"""Training as a worker of Ray Train: notices of preemption, also from a Ray that keeps them elsewhere, refusals, and
what is evaluated on the way."""

import logging
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import ray.train
import ray.train.torch
import torch
from helpers.evaluation_samples import make_sets
from ray.train.v2._internal.execution import context
from ray.train.v2._internal.execution.preemption import PreemptionContext

from llip import storage
from llip.config import TrainingConfig
from llip.evaluation.sets.evaluation_set import write
from llip.fields import override
from llip.runs.stopping import StoppedError
from llip.training import checkpoint
from pipelines import launching
from pipelines.failures import RefusedError

CONTEXT = "ray.train.v2._internal.execution.context"


@pytest.fixture
def run(small: TrainingConfig, shards: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What a worker is given. This process is made to look like one."""
    worker = SimpleNamespace(get_local_world_size=lambda: 1, get_world_rank=lambda: 1, get_world_size=lambda: 2)
    monkeypatch.setattr(ray.train, "get_context", lambda: worker)
    monkeypatch.setattr(torch, "set_num_threads", lambda threads: None)
    return {"run": launching.Run(config=small, shards=shards, folder=str(tmp_path / "run"))}


def _newest(run: dict[str, Any]) -> int:
    folder = checkpoint.latest(run["run"].folder)
    assert folder is not None
    return checkpoint.step_of(folder)


def test_a_preemption_saves_and_stops(run: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """The error is raised, for Ray to start the workers again. The class of the notice is Ray's own."""
    told = PreemptionContext()
    monkeypatch.setattr(context, "get_train_context", lambda: SimpleNamespace(preemption_context=told))
    preempted = launching._preemption()
    assert not preempted()
    told.preemption_info = "soon"  # type: ignore[assignment]
    assert preempted()
    with pytest.raises(StoppedError):
        launching._train_on_worker(run)
    assert _newest(run) == 1


@pytest.mark.parametrize("missing", ["module", "function", "notice"])
def test_training_goes_on_where_ray_does_not_tell_of_preemptions(
    missing: str, run: dict[str, Any], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    match missing:
        case "module":
            monkeypatch.setitem(sys.modules, CONTEXT, None)
        case "function":
            monkeypatch.delattr(context, "get_train_context")
        case "notice":
            monkeypatch.setattr(context, "get_train_context", SimpleNamespace)
    with caplog.at_level(logging.WARNING):
        assert launching._train_on_worker(run) == {}
    assert caplog.text.count("this Ray does not tell of preemptions") == 1
    assert _newest(run) == run["run"].config.steps


def test_a_refusal_is_raised_for_ray_to_ask_the_other_ranks(
    run: dict[str, Any], small: TrainingConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(launching, "_preemption", lambda: lambda: False)
    many = override(small, {"objective.accumulation": 17})
    with pytest.raises(RefusedError, match=r"objective\.accumulation is 17; it has to be at most 16"):
        launching._train_on_worker({"run": replace(run["run"], config=many)})


def test_a_place_that_cannot_be_written_is_the_storages_failure(
    run: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: object, **__: object) -> None:
        raise storage.PlaceError(5, "the service is away")

    monkeypatch.setattr(launching, "_preemption", lambda: lambda: False)
    monkeypatch.setattr(launching, "train_and_evaluate", fails)
    with pytest.raises(storage.PlaceError):
        launching._train_on_worker(run)


@pytest.mark.parametrize(("gpu", "there", "asked"), [(False, 0, False), (True, 0, True), (False, 2, True)])
def test_workers_ask_for_gpus_that_are_there_or_are_said_to_come(
    gpu: bool, there: int, asked: bool, run: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A cluster that starts its GPU nodes on demand has none when the run is submitted."""
    found: dict[str, Any] = {}

    class Trainer:
        train_run_context = SimpleNamespace(run_id="1")

        def __init__(self, work: Any, scaling_config: Any, **others: Any) -> None:
            found["scaling"] = scaling_config

        def fit(self) -> Any:
            return SimpleNamespace(return_value={})

    monkeypatch.setattr(ray.train.torch, "TorchTrainer", Trainer)
    monkeypatch.setattr(launching, "_cluster_gpus", lambda: there)
    launching.fit(run["run"], workers=2, gpu=gpu)
    assert found["scaling"].use_gpu is asked


def test_sets_that_are_not_watched_are_evaluated_at_the_end_alone(
    small: TrainingConfig, shards: str, tmp_path: Path
) -> None:
    sets = make_sets()
    for data in sets:
        write(str(tmp_path / "sets" / data.name), data)
    seen: dict[int, set[str]] = {}
    run = launching.Run(
        config=replace(small, steps=4, evaluate_every=2),
        shards=shards,
        folder=str(tmp_path / "run"),
        evaluation=str(tmp_path / "sets"),
        watched=(sets[0].name,),
    )

    def note(step: int, metrics: Mapping[str, object]) -> None:
        seen[step] = {name.split("/")[0] for name in metrics}

    launching.train_and_evaluate(run, on_evaluation=note, progress=launching.silent)
    assert seen == {2: {sets[0].name}, 4: {data.name for data in sets}} and len(sets) > 1
