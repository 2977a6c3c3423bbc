"""The trials of a sweep under Ray Tune: each is a training run with evaluations, in its own folder and MLflow run."""

import os
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import ray
from ray import tune
from ray.tune.integration.ray_train import TuneReportCallback
from ray.tune.schedulers import ASHAScheduler, FIFOScheduler
from tqdm import tqdm

from llip import storage
from llip.config import TrainingConfig
from llip.evaluation import Metric
from llip.training.tracking import Tracking
from pipelines import command, launching
from tune.report import TrialResult
from tune.space import Point


@dataclass(frozen=True, kw_only=True)
class Trial:
    """One training run of the sweep."""

    point: Point
    config: TrainingConfig


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Everything that Ray Tune needs to know."""

    trials: dict[str, Trial]
    """By name; a name is also the trial's folder and its MLflow run."""
    folder: str
    """URI of the sweep's folder."""
    shards: str | tuple[str, ...]
    evaluation: str
    tracking: Tracking
    parent_run_id: str | None
    metric: str
    asha: bool
    workers: int
    concurrency: int | None

    def trial_folder(self, name: str) -> str:
        """URI of a trial's run folder."""
        return storage.join(self.folder, "trials", name)

    def trial_tracking(self, name: str) -> Tracking:
        """The trial's MLflow run, a child of the sweep's."""
        return replace(self.tracking, run_name=name, parent_run_id=self.parent_run_id)


def run(plan: Plan) -> dict[str, TrialResult]:
    """Run every trial that is not finished; results by trial, in the order of the plan.

    A trial that fails is named with its error; the others go on.
    """
    command.start_ray()
    os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")  # the newer one prints tables whatever its verbosity
    storage_path, experiment_name = storage.quoted(storage.join(plan.folder, "ray")), "tune"
    experiment = storage.join(storage_path, experiment_name)
    trainable = tune.with_resources(partial(_train, plan=plan), _resources(plan.workers))
    if tune.Tuner.can_restore(experiment):
        tuner = tune.Tuner.restore(experiment, trainable, resume_unfinished=True, restart_errored=True)
    else:
        tuner = tune.Tuner(
            trainable,
            param_space={"trial": tune.grid_search(list(plan.trials))},
            tune_config=_tune_config(plan),
            run_config=tune.RunConfig(
                name=experiment_name,
                storage_path=storage_path,
                verbose=0,
                callbacks=[_Bar(plan)],
                failure_config=tune.FailureConfig(max_failures=1),
            ),
        )
    grid = tuner.fit()
    found = {result.config["trial"]: result for result in map(grid.__getitem__, range(len(grid))) if result.config}
    for trial, result in found.items():
        if result.error:
            print(f"{trial} failed: {str(result.error).strip().splitlines()[-1]}")
    return {name: _result(trial, found[name].metrics if name in found else None) for name, trial in plan.trials.items()}


def _tune_config(plan: Plan) -> tune.TuneConfig:
    """ASHA in samples seen: at an evaluation a trial in the worse half of those that got so far stops.

    A trial is stopped within its report, so the last report must not be one where it can be: `max_t` lies below it.
    """
    config = next(iter(plan.trials.values())).config
    every = (config.evaluate_every or config.total_steps) * config.data.batch_size
    asha = partial(ASHAScheduler, time_attr="samples", grace_period=every, reduction_factor=2)
    return tune.TuneConfig(
        metric=plan.metric,
        mode="max",
        scheduler=asha(max_t=config.samples - 1, stop_last_trials=False) if plan.asha else FIFOScheduler(),
        max_concurrent_trials=plan.concurrency or _concurrency(plan.workers),
    )


def _gpus() -> int:
    return int(ray.cluster_resources().get("GPU", 0))


def _concurrency(workers: int) -> int:
    """Trials whose workers fit at the same time. More of them would hold resources and wait for each other forever."""
    units = _gpus() or int(ray.cluster_resources()["CPU"])
    return max(1, units // max(1, workers))


def _resources(workers: int) -> dict[str, float]:
    """A trial that trains in its own process needs a core or a GPU; one that drives workers nearly none."""
    if workers:
        return {"CPU": 0.01}
    return {"CPU": 1, "GPU": 1} if _gpus() else {"CPU": 1}


def _train(config: dict[str, Any], plan: Plan) -> None:
    """One trial, in a process of its own."""
    name = config["trial"]
    trial = plan.trials[name]
    job = launching.Run(
        config=trial.config,
        shards=plan.shards,
        folder=plan.trial_folder(name),
        evaluation=plan.evaluation,
        tracking=plan.trial_tracking(name),
    )
    if plan.workers:
        launching.fit(job, workers=plan.workers, callbacks=[TuneReportCallback()])
        return

    def report(step: int, metrics: dict[str, Metric]) -> None:
        if plan.metric not in metrics:
            raise ValueError(f"--metric {plan.metric} is not measured; there are {', '.join(sorted(metrics))}")
        tune.report(launching.reported(trial.config, step, metrics))

    launching.train_and_evaluate(job, on_evaluation=report, progress=partial(tqdm, disable=True))


def _result(trial: Trial, reported: dict[str, Any] | None) -> TrialResult:
    values = reported or {}
    chance = {n.removeprefix(launching.CHANCE): v for n, v in values.items() if n.startswith(launching.CHANCE)}
    return TrialResult(
        point=trial.point,
        seed=trial.config.seed,
        samples=values.get("samples", 0),
        budget=trial.config.samples,
        metrics={n: values[n] for n in chance},
        chance=chance,
    )


class _Bar(tune.Callback):
    """Progress of the whole sweep: images seen of those planned. A trial that ends early counts as complete."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._seen: dict[str, int] = {}
        self._best = ("", float("-inf"))

    def __getstate__(self) -> dict[str, Any]:
        """Tune keeps its callbacks with the experiment; a bar belongs to one process."""
        return {name: value for name, value in vars(self).items() if name != "_bar"}

    def get_state(self) -> dict[str, Any]:
        return {"seen": self._seen, "best": self._best}

    def set_state(self, state: dict[str, Any]) -> None:
        self._seen, self._best = state["seen"], state["best"]

    def setup(self, *args: Any, **info: Any) -> None:
        total = sum(t.config.samples for t in self._plan.trials.values())
        self._bar = tqdm(desc="trials", total=total, initial=sum(self._seen.values()), unit="img", unit_scale=True)

    def on_trial_result(
        self, iteration: int, trials: Iterable[Any], trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        name, value = trial.config["trial"], result.get(self._plan.metric, float("-inf"))
        if value > self._best[1]:
            self._best = (name, value)
            self._bar.set_postfix_str(f"best {value:.4f} {name}")
        self._advance(name, result["samples"])

    def on_trial_complete(self, iteration: int, trials: Iterable[Any], trial: Any, **info: Any) -> None:
        name = trial.config["trial"]
        self._advance(name, self._plan.trials[name].config.samples)

    def on_experiment_end(self, trials: Iterable[Any], **info: Any) -> None:
        self._bar.close()

    def _advance(self, name: str, samples: int) -> None:
        self._bar.update(samples - self._seen.get(name, 0))
        self._seen[name] = samples
