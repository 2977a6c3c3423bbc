"""Trials under Ray Tune: each is a training run with evaluations, in its own folder and MLflow run.

A trial's record in its folder is what a later session goes on from, under a fresh Tune experiment.
"""

import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

from llip import storage
from llip.lease import sole_writer
from pipelines import command
from tune import results
from tune.results import Trial, TrialResult

if TYPE_CHECKING:  # Ray and torch are imported once something is run
    from llip.evaluation import Metric
    from llip.runs.tracking import Tracking
    from tune.search import Suggestions


logger = logging.getLogger(__name__)

MOST_ON_SQLITE = 8
"""Trials that write one database file at a time without waiting for each other for long."""


@dataclass(frozen=True, kw_only=True)
class TrialPlan:
    """Trials to train, their data, and how they run."""

    trials: Mapping[str, Trial] = field(default_factory=dict)
    """By name; a name is also the trial's folder and its MLflow run."""
    folder: str
    """URI of the sweep's folder."""
    shards: str | tuple[str, ...]
    evaluation: str
    tracking: "Tracking"
    parent_run_id: str | None
    metric: str
    scheduler: Literal["asha", "hyperband", "none"] = "none"
    workers: int
    gpu: bool = False
    concurrency: int | None

    @property
    def trials_folder(self) -> str:
        return storage.join(self.folder, "trials")

    def trial_folder(self, name: str) -> str:
        """URI of a trial's run folder."""
        return storage.join(self.trials_folder, name)

    def trial_command(self, trial: Trial) -> str:
        """The command line that trains a trial once more, by the configuration that its folder holds."""
        places = {"recipe": self.trial_folder(trial.name), "shards": self.shards, "evaluation": self.evaluation}
        return command.written("uv run pipelines/pretrain.py", places)

    def trial_tracking(self, trial: Trial) -> "Tracking":
        """The trial's MLflow run, a child of the sweep's, tagged with what is varied."""
        tags = self.tracking.tags | {path: str(value) for path, value in trial.point.fields}
        return replace(self.tracking, run_name=trial.name, parent_run_id=self.parent_run_id, tags=tags)


def run(plan: TrialPlan, suggestions: "Suggestions | None" = None) -> dict[str, TrialResult]:
    """Run every trial that is not finished, then those that are suggested; results by trial, in that order.

    A trial that fails is named with its error; the others go on.
    """
    known = {name: results.read(plan.trial_folder(name), trial) for name, trial in plan.trials.items()}
    left = [trial for name, trial in plan.trials.items() if not known[name].ended]
    if left or suggestions:
        with sole_writer(plan.folder):
            _fit(plan, left, known, suggestions)
    trials = {**plan.trials, **(suggestions.planned if suggestions else {})}
    found = {name: results.read(plan.trial_folder(name), trial) for name, trial in trials.items()}
    for name, result in found.items():
        if result.error:
            print(f"{name} failed: {result.error}")
    return found


def _fit(
    plan: TrialPlan, left: list[Trial], known: Mapping[str, TrialResult], suggestions: "Suggestions | None"
) -> None:
    from ray import tune
    from ray.tune.schedulers import FIFOScheduler

    from tune.reporting import Recorder
    from tune.schedulers import Patient
    from tune.search import Queue

    command.start_ray()
    os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")  # the newer one prints tables whatever its verbosity
    scheduler: Any = FIFOScheduler()
    if plan.scheduler != "none":
        scheduler = Patient(plan.scheduler, plan.metric)
        scheduler.recall((plan.trials[name], result) for name, result in known.items() if result.ended)
    experiment = storage.join(plan.folder, "ray")
    storage.remove(experiment)  # of an earlier session
    planned = sum(trial.config.samples for trial in left)
    tune.Tuner(
        tune.with_resources(partial(_train, plan=replace(plan, trials={})), _resources(plan.workers)),
        tune_config=tune.TuneConfig(
            scheduler=scheduler,
            search_alg=Queue(left, plan.metric, suggestions),
            num_samples=-1,
            max_concurrent_trials=plan.concurrency or _concurrency(plan),
            trial_dirname_creator=lambda trial: trial.trial_id,
            reuse_actors=True,  # a process that has trained has imported everything: ten seconds of a core
        ),
        run_config=tune.RunConfig(
            name="tune",
            storage_path=storage.quoted(experiment),
            verbose=0,
            callbacks=[Recorder(plan.metric, plan.trials_folder, known, planned)],
            failure_config=tune.FailureConfig(max_failures=1),
        ),
    ).fit()


def _gpus() -> int:
    import ray

    return int(ray.cluster_resources().get("GPU", 0))


def _concurrency(plan: TrialPlan) -> int:
    """Trials whose workers fit at the same time, and that a database file can take. More of them would hold resources
    and wait for each other forever."""
    import ray

    units = _gpus() or int(ray.cluster_resources()["CPU"])
    fit = max(1, units // max(1, plan.workers))
    if plan.tracking.uri.startswith("sqlite:") and fit > MOST_ON_SQLITE:
        logger.warning("%d trials at a time, not %d: a server in MLFLOW_TRACKING_URI takes more", MOST_ON_SQLITE, fit)
        return MOST_ON_SQLITE
    return fit


def _resources(workers: int) -> dict[str, float]:
    """A trial that trains in its own process needs a core or a GPU; one that drives workers nearly none."""
    if workers:
        return {"CPU": 0.01}
    return {"CPU": 1, "GPU": 1} if _gpus() else {"CPU": 1}


def _train(config: dict[str, Any], plan: TrialPlan) -> None:
    """One trial, in a process beside the driver, where others may have trained before."""
    from ray import tune
    from ray.tune.integration.ray_train import TuneReportCallback

    from pipelines import launching

    trial: Trial = config["trial"]
    job = launching.Run(
        config=trial.config,
        shards=plan.shards,
        folder=plan.trial_folder(trial.name),
        evaluation=plan.evaluation,
        watched=(plan.metric.split("/")[0],),
        tracking=plan.trial_tracking(trial),
        recipe=command.brief_recipe(trial.point.recipe),
        differing=tuple(f"{path}: {value}" for path, value in trial.point.fields),
        command=plan.trial_command(trial),
    )

    def report(step: int, metrics: "dict[str, Metric]") -> None:
        tune.report(launching.reported(trial.config, step, metrics))

    with sole_writer(job.folder):  # a run of pretrain.py may train there, or what is left of a driver that died
        if plan.workers:
            launching.fit(job, workers=plan.workers, gpu=plan.gpu, callbacks=[TuneReportCallback()])
        else:
            launching.train_and_evaluate(job, on_evaluation=report, progress=launching.silent)
