"""Training as a stage: in this process, or on workers of Ray Train, which starts again those that die."""

import contextlib
import logging
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from tqdm import tqdm

from llip.config import TrainingConfig, to_dict
from llip.data import evaluation_set
from llip.evaluation import Metric, evaluate_model
from llip.model.build import ContrastiveModel
from llip.training import run_folder
from llip.training.loop import NonFiniteError, Progress, train
from llip.training.parallel import current_world
from llip.training.tracking import Tracker, Tracking, open_run
from pipelines import command

OnEvaluation = Callable[[int, dict[str, Metric]], None]


@dataclass(frozen=True, kw_only=True)
class Run:
    """A training run: what is trained, on what, and where its results go."""

    config: TrainingConfig
    shards: str
    folder: str
    evaluation: str | None = None
    """Folder that holds evaluation sets, for evaluation in training; None: no evaluation."""
    tracking: Tracking | None = None
    data_card: dict[str, Any] | None = None
    """How the shards were curated, for the tracker."""


def train_and_evaluate(
    run: Run, *, on_evaluation: OnEvaluation | None = None, progress: Progress = tqdm
) -> dict[str, Metric]:
    """Train to the end, from wherever the run's folder has got to, and return the metrics of the last evaluation.

    Uses the ranks of an initialised process group, else this process alone. `on_evaluation(step, metrics)` is called on
    every rank after each evaluation; ranks other than 0 have no metrics. Raises ValueError where the folder holds a run
    of another configuration.
    """
    world = current_world()
    metrics: dict[str, Metric] = {}
    first = world.rank == 0
    if first:
        run_folder.claim(run.folder, run.config, run.shards)
    sets = [evaluation_set.read(f) for f in evaluation_set.find(run.evaluation)] if run.evaluation and first else []

    with Tracker(run.tracking, run.folder, enabled=first) as tracker:
        tracker.parameters(to_dict(run.config) | {"shards": run.shards, "world_size": world.size})
        tracker.artifact("config.json", to_dict(run.config))
        if run.data_card:
            tracker.artifact("data_card.json", run.data_card)

        def evaluate(step: int, model: ContrastiveModel) -> None:
            if first:
                metrics.update(evaluate_model(model, sets, device=world.device, progress=False))
                tracker.log(step, {name: metric.value for name, metric in metrics.items()})
            if on_evaluation:
                on_evaluation(step, metrics)

        train(
            run.config,
            shards=run.shards,
            folder=run.folder,
            world=world,
            tracker=tracker,
            evaluate=evaluate if run.evaluation else None,
            progress=progress,
        )
    return metrics


def fit(run: Run, *, workers: int, max_failures: int = 3, callbacks: Sequence[Any] = ()) -> dict[str, Metric]:
    """`train_and_evaluate` under Ray Train: in this process (0 workers), or in as many, each with a GPU if there are.

    A worker that dies is started again, at most `max_failures` times, and goes on from the last checkpoint. Evaluations
    are reported to Ray Train, so that `callbacks` (Ray Tune's) see them. Raises what training raised: ValueError,
    NonFiniteError.
    """
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchTrainer

    if run.tracking and workers:  # processes that meet a fresh sqlite file at once break it
        with contextlib.suppress(Exception):  # a server that is dead now is the tracker's business later
            open_run(run.tracking, run.folder)
    logging.getLogger("ray.train").setLevel(logging.WARNING)  # its notes would break into the progress bar
    work: Any = _train_on_worker if workers else _train_here
    trainer = TorchTrainer(
        work,
        train_loop_config={"run": run},
        scaling_config=ScalingConfig(
            num_workers=workers,
            use_gpu=workers > 0 and _cluster_gpus() > 0,
            resources_per_worker={"CPU": 0.5},  # whole ones would leave no core to others on a small machine
        ),
        run_config=RunConfig(
            name="ray",
            storage_path=run.folder,
            failure_config=FailureConfig(max_failures=max_failures),
            callbacks=list(callbacks),
        ),
    )
    result: Any = trainer.fit()
    if isinstance(result.return_value, Exception):
        raise result.return_value
    return dict(result.return_value)


CHANCE = "chance:"
"""Prefix of a metric's chance level in what is reported."""


def reported(config: TrainingConfig, step: int, metrics: dict[str, Metric]) -> dict[str, float]:
    """An evaluation as Ray Train and Ray Tune take it: samples seen, values, chance levels, in one dictionary."""
    values = {name: metric.value for name, metric in metrics.items()}
    levels = {CHANCE + name: metric.chance for name, metric in metrics.items()}
    return {"step": step, "samples": step * config.data.batch_size} | values | levels


def default_workers() -> int:
    """A process for each GPU of the cluster that runs this job, or of this machine if it has several; else 0."""
    if "RAY_ADDRESS" in os.environ:
        return _cluster_gpus()
    return torch.cuda.device_count() if torch.cuda.device_count() > 1 else 0


def _cluster_gpus() -> int:
    import ray

    command.start_ray()
    return int(ray.cluster_resources().get("GPU", 0))


def _train_here(config: dict[str, Any]) -> dict[str, Metric]:
    return train_and_evaluate(config["run"], progress=local_bar)


def _train_on_worker(config: dict[str, Any]) -> dict[str, Metric] | Exception:
    """What one of the ranks does. What a restart would not cure is returned, since Ray restarts what raises."""
    import ray.train

    context = ray.train.get_context()
    cores = len(os.sched_getaffinity(0))
    torch.set_num_threads(max(1, cores // context.get_local_world_size()))

    def report(step: int, metrics: dict[str, Metric]) -> None:
        ray.train.report(reported(config["run"].config, step, metrics))

    try:
        progress = _cluster_bar if context.get_world_rank() == 0 else _no_bar
        return train_and_evaluate(config["run"], on_evaluation=report, progress=progress)
    except (ValueError, NonFiniteError) as error:
        return error


def local_bar(**settings: Any) -> Any:
    """A bar of this process; seldom drawn where nobody watches it move."""
    return tqdm(**settings, mininterval=0.5 if sys.stderr.isatty() else 10)


def _cluster_bar(*, initial: int, **settings: Any) -> Any:
    """A bar that the driver draws."""
    from ray.experimental import tqdm_ray

    bar = tqdm_ray.tqdm(**settings)
    bar.update(initial)
    return contextlib.closing(bar)


def _no_bar(**settings: Any) -> Any:
    return tqdm(**settings, disable=True)
