"""Sweep K and heads of Llip, beside other objectives, with Ray Tune.

    uv run tune/sweep.py                                             # the built-in corpus
    uv run tune/sweep.py --objective siglip llip --k 1 2 4 8 16 --heads 1 4 8 --seeds 3 --scheduler none
    python tune/sweep.py --recipe llip_b32_k32 --k 32 64 128 --heads 1 8 16 --steps 20000 --workers 8 \\
        --shards s3://bucket/shards --evaluation s3://bucket/evaluation --metric imagenet/top1 --output s3://bucket/work

Run again, it goes on where it was: finished trials are kept, the others resume from their last checkpoint.
"""

import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from llip import storage
from llip.config import TrainingConfig, differences
from llip.data import evaluation_set
from llip.training.tracking import Tracking, default_store, open_run
from pipelines import chain, command
from pipelines.settings import configure
from tune import report, trials
from tune.report import Summary, TrialResult
from tune.space import Objective, Point, Space, possible


@dataclass(frozen=True, kw_only=True)
class Sweep:
    """What is compared, on what, and for how long."""

    recipe: str = "llip_tiny_k8"
    """Complete configuration to start from; every trial replaces some of it."""
    objective: tuple[Objective, ...] = ("llip",)
    """Objectives to compare. K and heads are Llip's; CLIP and SigLIP are one trial a seed."""
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
    concurrency: int | None = None
    """Trials at a time; as many as there are GPUs (or, without, CPUs) for where not given."""
    workers: int = 0
    """Processes of each trial under Ray Train, or 0 for one without it."""

    pool: str | None = None
    """Images with captions to curate and shard; without it, the built-in corpus."""
    shards: str | None = None
    """Finished shards to train on."""
    evaluation: str | None = None
    """Folder of evaluation sets; those of the built-in corpus where it is trained on."""
    corpus_images: int | None = None
    """Images of the built-in corpus (16,000)."""
    output: str = "output"
    """Folder of everything that is made; the sweep's own is `sweeps/<name>` in it."""
    name: str = "k_heads"
    """Name of the sweep."""

    def __post_init__(self) -> None:
        for field, least in (("seeds", 1), ("steps", 1), ("evaluations", 1), ("concurrency", 1), ("workers", 0)):
            value = getattr(self, field)
            if value is not None and value < least:
                raise ValueError(f"--{field} is {value}; it has to be at least {least}")
        if self.scheduler == "asha" and self.evaluations < 2:
            raise ValueError("--evaluations 1 leaves asha nothing to decide; take 2 or more, or --scheduler none")
        if self.evaluations > self.steps:
            raise ValueError(f"--evaluations {self.evaluations} is above --steps {self.steps}")
        if (self.pool or self.shards) and not self.evaluation:
            raise ValueError("a sweep compares metrics: name a folder of evaluation sets with --evaluation")


def sweep(settings: Sweep) -> list[Summary]:
    """Run what is left of the sweep and report it: a table, a plot, and the command that trains the best point.

    Raises ValueError, before any work, where no point is possible, and for a folder that holds another sweep.
    """
    configurations = _configurations(settings)
    output = storage.absolute(settings.output)
    folder = storage.join(output, "sweeps", settings.name)
    _claim(folder, settings)
    data = chain.prepare(
        output,
        pool=settings.pool and storage.absolute(settings.pool),
        shards=settings.shards and storage.absolute(settings.shards),
        evaluation=settings.evaluation and storage.absolute(settings.evaluation),
        corpus_images=settings.corpus_images,
    )
    assert data.evaluation is not None
    _check_metric(settings.metric, data.evaluation)

    tracking = _tracking(settings, output)
    parent = _parent_run(tracking, folder)
    planned = {
        f"{point}-seed{config.seed}": trials.Trial(point=point, config=config)
        for point, per_seed in configurations.items()
        for config in per_seed
    }
    plan = trials.Plan(
        trials=planned,
        folder=folder,
        shards=data.shards,
        evaluation=data.evaluation,
        tracking=tracking,
        parent_run_id=parent[1] if parent else None,
        metric=settings.metric,
        asha=settings.scheduler == "asha",
        workers=settings.workers,
        concurrency=settings.concurrency,
    )
    return _report(settings, plan, trials.run(plan), parent)


def _configurations(settings: Sweep) -> dict[Point, list[TrainingConfig]]:
    """Configurations of every possible point, one a seed. Says which points are left out, and why."""
    every = max(1, settings.steps // settings.evaluations)

    def configuration(point: Point, seed: int) -> TrainingConfig:
        return configure(
            settings.recipe,
            objective=point.objective,
            k=None if point.heads is None else point.k,
            heads=point.heads,
            steps=settings.steps,
            batch_size=settings.batch_size,
            learning_rate=settings.learning_rate,
            checkpoint_every=every,
            evaluate_every=every,
            seed=seed,
        )

    points = Space(objectives=settings.objective, k=settings.k, heads=settings.heads).points()
    found, reasons = possible(points, lambda point: configuration(point, 0))
    for point, reason in reasons.items():
        print(f"left out {point}: {reason}")
    if not found:
        raise ValueError("no point of the space is possible; see the reasons above")
    return {point: [configuration(point, seed) for seed in range(settings.seeds)] for point in found}


def _claim(folder: str, settings: Sweep) -> None:
    """Note in the folder what is swept. Raises ValueError where it holds another sweep, naming what differs."""
    uri = storage.join(folder, "sweep.json")
    content = {name: value for name, value in asdict(settings).items() if name not in ("output", "name")}
    if storage.exists(uri) and (changed := differences(storage.read_json(uri), content)):
        raise ValueError(
            f"{folder} holds a sweep of other settings ({'; '.join(changed)}); choose another --name or remove it"
        )
    storage.write_json(uri, content)


def _check_metric(metric: str, evaluation: str) -> None:
    names = [evaluation_set.read(f).name for f in evaluation_set.find(evaluation)]
    if metric.split("/")[0] not in names:
        raise ValueError(f"--metric {metric}: the evaluation sets in {evaluation} are {', '.join(names)}")


def _tracking(settings: Sweep, output: str) -> Tracking:
    uri, artifacts = default_store(output)
    return Tracking(uri=uri, experiment="llip", run_name=settings.name, artifact_location=artifacts)


def _parent_run(tracking: Tracking, folder: str) -> tuple[Any, str] | None:
    """MLflow's client and the run that the trials are children of; None where its server does not answer."""
    try:
        return open_run(tracking, folder)
    except Exception as error:  # however a server fails, the sweep goes on: trials keep records of their own
        print(
            f"MLflow at {tracking.uri} does not answer ({str(error).splitlines()[0]}): trials will have no parent run"
        )
        return None


def _report(
    settings: Sweep, plan: trials.Plan, results: dict[str, TrialResult], parent: tuple[Any, str] | None
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
        _log(*parent, settings, files, best)
        _end_stopped(parent[0], plan, results)
    print(f"\n{table}\n\nplot         {storage.join(plan.folder, 'sweep.png')}")
    print(f"best         {_command(settings, best.point)}")
    return summaries


def _log(client: Any, run_id: str, settings: Sweep, files: Mapping[str, bytes], best: Summary) -> None:
    """Log the report to the parent run."""
    try:
        known = client.get_run(run_id).data.params
        for name, value in asdict(settings).items():
            if name not in known:
                client.log_param(run_id, name, value)
        client.log_metric(run_id, settings.metric, best.mean)
        with tempfile.TemporaryDirectory() as local:
            for name, content in files.items():
                path = Path(local) / name
                path.write_bytes(content)
                client.log_artifact(run_id, str(path))
        client.set_terminated(run_id)
    except Exception as error:  # the report lies in the folder
        print(f"MLflow does not answer ({str(error).splitlines()[0]}): the report was not logged")


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
    options |= {} if point.heads is None else {"k": point.k, "heads": point.heads}
    options |= {name: getattr(settings, name) for name in ("batch_size", "learning_rate", "pool", "shards")}
    options |= {name: getattr(settings, name) for name in ("evaluation", "corpus_images", "output")}
    given = [f"--{name.replace('_', '-')} {value}" for name, value in options.items() if value is not None]
    return "uv run pipelines/pretrain.py " + " ".join(given)


if __name__ == "__main__":
    command.run(Sweep, sweep, "Compare K and head counts of Llip, and other objectives, at equal cost.")
