"""Sweep K and heads of Llip, beside other objectives, with Ray Tune.

    uv run tune/sweep.py                                             # the built-in corpus
    uv run tune/sweep.py --objective siglip llip --k 1 2 4 8 16 --heads 1 4 8 --seeds 3 --scheduler none
    python tune/sweep.py --recipe llip_b32_k32 --k 32 64 128 --heads 1 8 16 --steps 20000 --workers 8 \\
        --shards s3://bucket/shards --evaluation s3://bucket/evaluation --metric imagenet/top1 --output s3://bucket/work

Run again, it goes on where it was: finished trials are kept, the others resume from their last checkpoint.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

from llip import storage
from llip.config import TrainingConfig
from llip.training.tracking import open_run
from pipelines import command
from tune import experiment, report, trials
from tune.experiment import Experiment, Parent
from tune.report import Summary, TrialResult
from tune.space import Objective, Point, Space, configured, possible


@dataclass(frozen=True, kw_only=True)
class Sweep(Experiment):
    """What is compared, on what, and for how long."""

    objective: tuple[Objective, ...] = ("llip",)
    """Objectives and ablations to compare. CLIP and SigLIP have neither K nor heads: they are one trial a seed."""
    k: tuple[int, ...] = (1, 4, 16)
    """Numbers of mixture tokens."""
    heads: tuple[int, ...] = (1, 4)
    """Numbers of heads; those that do not divide the width are left out."""
    seeds: int = 1
    """Trials of each point, with seeds 0, 1, …; the table shows mean and spread."""
    steps: int = 160
    """Optimizer steps of a trial that nothing stops."""
    batch_size: int | None = None
    """Images of a step, over all workers of a trial."""
    learning_rate: float | None = None
    """Highest learning rate, the same for all."""
    evaluations: int = 4
    """Evaluations of a trial, evenly spread; at each the scheduler decides, and a checkpoint is saved."""
    metric: str = "scenes_in_style/text_to_image_map"
    """What is compared, the more the better: `<evaluation set>/<metric>`."""
    scheduler: Literal["asha", "none"] = "asha"
    """asha stops a trial that is in the worse half at an evaluation; none runs every trial to its end."""
    name: str = "k_heads"
    """Name of the sweep."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for field in ("steps", "evaluations"):
            if getattr(self, field) < 1:
                raise ValueError(f"--{field} is {getattr(self, field)}; it has to be at least 1")
        if self.scheduler == "asha" and self.evaluations < 2:
            raise ValueError("--evaluations 1 leaves asha nothing to decide; take 2 or more, or --scheduler none")
        if self.evaluations > self.steps:
            raise ValueError(f"--evaluations {self.evaluations} is above --steps {self.steps}")


def sweep(settings: Sweep) -> list[Summary]:
    """Run what is left of the sweep and report it: a table, a plot, and the command that trains the best point.

    Raises ValueError, before any work, where no point is possible, and for a folder that holds another sweep.
    """
    configurations = _configurations(settings)
    plan, parent = experiment.prepare(settings, "sweeps", "sweep", asha=settings.scheduler == "asha")
    planned = {
        f"{point}-seed{config.seed}": trials.Trial(point=point, config=config)
        for point, per_seed in configurations.items()
        for config in per_seed
    }
    plan = replace(plan, trials=planned)
    return _report(settings, plan, trials.run(plan), parent)


def _configurations(settings: Sweep) -> dict[Point, list[TrainingConfig]]:
    """Configurations of every possible point, one a seed. Says which points are left out, and why."""
    every = max(1, settings.steps // settings.evaluations)

    def configuration(point: Point, seed: int) -> TrainingConfig:
        values = {"steps": settings.steps, "batch_size": settings.batch_size, "learning_rate": settings.learning_rate}
        every_few = {"checkpoint_every": every, "evaluate_every": every, "seed": seed}
        return configured(settings.recipe, point, values | every_few)

    points = Space(objectives=settings.objective, k=settings.k, heads=settings.heads).points()
    found, reasons = possible(points, lambda point: configuration(point, 0))
    for point, reason in reasons.items():
        print(f"left out {point}: {reason}")
    if not found:
        raise ValueError("no point of the space is possible; see the reasons above")
    return {point: [configuration(point, seed) for seed in range(settings.seeds)] for point in found}


def _report(
    settings: Sweep, plan: trials.Plan, results: dict[str, TrialResult], parent: Parent | None
) -> list[Summary]:
    """Write, print and log what the sweep found."""
    summaries = report.summarise(list(results.values()), settings.metric)
    if not summaries:
        raise ValueError("no trial reached its first evaluation; see the errors above")
    table = report.table(summaries, settings.metric)
    files = {"sweep.txt": (table + "\n").encode(), "sweep.png": report.plot(summaries, settings.metric)}
    for name, content in files.items():
        storage.write_bytes(storage.join(plan.folder, name), content)
    storage.write_json(storage.join(plan.folder, "results.json"), [asdict(r) for r in results.values()])
    best = report.best(summaries)
    if parent:
        experiment.log_report(parent, settings, files, {settings.metric: best.mean})
        _end_stopped(parent[0], plan, results)
    print(f"\n{table}\n\nplot         {storage.join(plan.folder, 'sweep.png')}")
    print(f"best         {_command(settings, best.point)}")
    return summaries


def _end_stopped(client: Any, plan: trials.Plan, results: Mapping[str, TrialResult]) -> None:
    """End the MLflow runs of trials that the scheduler stopped before they could send their last numbers."""
    try:
        for name, result in results.items():
            if not result.metrics or result.finished:
                continue
            run_id = open_run(plan.trial_tracking(name), plan.trial_folder(name))[1]
            step = result.samples // plan.trials[name].config.data.batch_size
            for metric, value in result.metrics.items():
                client.log_metric(run_id, metric, value, step=step)
            client.set_terminated(run_id, "KILLED")
    except Exception as error:  # results.json has their numbers
        print(f"MLflow does not answer ({str(error).splitlines()[0]}): stopped trials were not ended in it")


def _command(settings: Sweep, point: Point) -> str:
    """The command that trains one point on its own."""
    options: dict[str, object] = {"recipe": settings.recipe, "objective": point.objective}
    options |= {"k": point.k, "heads": point.heads}
    options |= {name: getattr(settings, name) for name in ("batch_size", "learning_rate", "pool", "shards")}
    options |= {name: getattr(settings, name) for name in ("evaluation", "corpus_images", "output")}
    given = [f"--{name.replace('_', '-')} {value}" for name, value in options.items() if value is not None]
    return "uv run pipelines/pretrain.py " + " ".join(given)


def cli() -> None:
    """The command line."""
    command.run(Sweep, sweep, "Compare K and head counts of Llip, and other objectives, at equal cost.")


if __name__ == "__main__":
    cli()
