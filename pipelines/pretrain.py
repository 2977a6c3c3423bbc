"""Pretrain a model, from a pool of images with captions to its numbers.

    uv run pipelines/pretrain.py                                   # the built-in corpus, Llip, a few minutes
    uv run pipelines/pretrain.py --recipe siglip_tiny              # the same under another objective: data is made once
    uv run pipelines/pretrain.py --k 4 --optimizer.weight-decay 0.1 --print-config   # any setting; see what comes out
    python pipelines/pretrain.py --recipe llip_b16_k32_cc12m --pool s3://bucket/cc12m --curation none --workers 8
    python pipelines/pretrain.py --recipe llip_b16_k64 --pool s3://bucket/pool --output s3://bucket/work --workers 128

Run again, it goes on where it was: it resumes training from the last checkpoint, and leaves what is done.
"""

import os
import sys
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from llip import recipes, storage
from llip.config import TrainingConfig
from llip.fields import differences, setting
from llip.lease import sole_writer
from llip.runs import run_folder
from pipelines import command, prepare_data, ui
from pipelines.prepare_data import Curation, TrainedOnData

if TYPE_CHECKING:  # torch and Ray are imported once the options are right, so that --help and a refusal come at once
    from llip.evaluation import Metric


@dataclass(frozen=True, kw_only=True)
class Pretrain(TrainedOnData):
    """Model to train, its data, and the place of the run."""

    curation: Curation = "metaclip"
    """metaclip: match and balance the pool's captions as MetaCLIP does; none: check, encode and shuffle it as it is."""
    output: str = setting("output", metavar="FOLDER")
    """Folder of everything that is made: pool, curated, shards, runs and the tracking database."""
    name: str | None = None
    """Name of the run, and of its folder under runs; where not given it says what differs from the recipe."""
    profile: bool = False
    """Trace a few steps: profile/trace.json and profile/summary.md in the run's folder and in MLflow."""
    workers: int | None = None
    """Processes that train together, where not given one for each GPU of the cluster; 0 trains in this process."""
    min_workers: int | None = None
    """Fewest workers to go on with where nodes are lost; the run takes others once there are nodes again."""
    max_failures: int = 10
    """Restarts in a row without a new checkpoint between them, other than after a preemption; -1: any number. A run
    that makes progress never runs out of them."""
    resubmit: bool = False
    """Run in another process, which is started again where it dies, as often as --max-failures says."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.curation == "none" and self.pool is None:
            raise ValueError("--curation none is about a pool of your own: name it with --pool")
        if self.workers is not None and self.workers < 0:
            raise ValueError(f"--workers is {self.workers}; it has to be at least 0")
        if self.gpu and not self.workers:
            raise ValueError("--gpu needs --workers: how many GPUs there will be is not known before they start")
        if self.min_workers is not None and not 1 <= self.min_workers <= (self.workers or 0):
            raise ValueError(f"--min-workers {self.min_workers} has to be between 1 and --workers {self.workers}")

    def training(self) -> TrainingConfig:
        """The recipe with the options applied. Raises ValueError where they contradict each other or the data."""
        config = super().training()
        weights, folders = config.data.weights, 1 if isinstance(self.shards, str) else len(self.shards or ())
        if weights is not None and len(weights) != folders:
            raise ValueError(f"data.weights are {weights}; they have to be {folders} numbers, one a --shards folder")
        if config.evaluate_every is not None and self.evaluation is None and (self.pool or self.shards):
            raise ValueError("evaluate_every needs --evaluation, a folder of evaluation sets")
        if config.init_from is None:
            return config
        if not storage.exists(config.init_from):
            raise ValueError(f"init_from is {config.init_from}, which does not exist")
        return replace(config, init_from=storage.absolute(config.init_from))


@dataclass(frozen=True, kw_only=True)
class RunResult:
    """Results of a run."""

    folder: str
    """URI of the run's folder."""
    checkpoint: str
    """URI of its last checkpoint."""
    metrics: "dict[str, Metric]"
    """By name, each beside its chance level; empty without evaluation sets."""


def pretrain(settings: Pretrain) -> RunResult:
    """Make the data, train and evaluate; whatever is finished is left as it is.

    Raises ValueError, before any work, for options that contradict each other, and for a folder of other settings.
    """
    config = settings.training()
    workers = _workers(settings, config)
    output, folder = storage.absolute(settings.output), _run_folder(settings)
    run_folder.check(folder, config)
    length = f"{config.steps:,} steps" if config.steps else f"{config.epochs:g} epochs"
    print(f"{folder}: {command.brief_recipe(settings.recipe)}, {length} of {config.data.batch_size:,} images at a time")

    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # threads that spin steal the cores of those that decode
    from llip.runs import goodput, notebook, stopping
    from llip.runs.tracking import Tracking, default_store
    from llip.training import checkpoint
    from pipelines import launching

    data = prepare_data.prepare(
        output,
        **settings.data(),
        curation=settings.curation,
    )
    run_folder.claim(folder, config, data.shards)
    newest = checkpoint.latest(folder)
    steps = run_folder.for_shards(config, data.shards).total_steps
    uri, artifacts = default_store(output)
    if newest and checkpoint.step_of(newest) == steps:
        print(f"{folder} is trained already")
    else:
        if newest:
            print(f"{folder}: going on after step {checkpoint.step_of(newest)} of {steps}")
        run = launching.Run(
            config=config,
            shards=data.shards,
            folder=folder,
            evaluation=data.evaluation if config.evaluate_every else None,
            tracking=Tracking(
                uri=uri,
                run_name=_name(settings),
                artifact_location=artifacts,
                tags=notebook.context_tags(),
                made_from=(data.shards,) if isinstance(data.shards, str) else data.shards,
            ),
            recipe=command.brief_recipe(settings.recipe),
            differing=tuple(differences(recipes.load(settings.recipe), config)),
            command=command.repeating("uv run pipelines/pretrain.py", settings),
            documents=data.documents,
            profile=settings.profile,
        )
        if workers:
            command.start_ray()  # before the handler of SIGTERM, since Ray sets one of its own
        with sole_writer(folder):
            stopping.clear_stop(folder)
            with stopping.on_sigterm(folder):
                launching.fit(
                    run,
                    workers=workers,
                    gpu=settings.gpu,
                    min_workers=settings.min_workers,
                    max_failures=settings.max_failures,
                )
    outcome = RunResult(
        folder=folder, checkpoint=checkpoint.latest(folder) or "", metrics=_evaluate(folder, data.evaluation)
    )
    print(f"\ncheckpoint   {outcome.checkpoint}")
    print(f"goodput      {goodput.summary(folder)}")
    print(f"all runs     {ui.address(uri, output)}")
    runs = " ".join(storage.join(output, "runs", name) for name in ("NAME", "OTHER"))
    print(f"compare      uv run pipelines/compare.py {runs}")
    return outcome


def _name(settings: Pretrain) -> str:
    return settings.name or settings.run_name()


def _run_folder(settings: Pretrain) -> str:
    return storage.join(storage.absolute(settings.output), "runs", _name(settings))


def _workers(settings: Pretrain, config: TrainingConfig) -> int:
    """Processes to train with. Raises ValueError where they are more than the lanes that they share."""
    workers, lanes = settings.workers, config.data.lane_count
    if workers is None:
        from pipelines import launching

        workers = min(launching.default_workers(), lanes)
    if workers > lanes:
        raise ValueError(f"--workers {workers} cannot share the {lanes} lanes of the data; take at most {lanes}")
    return workers


def _evaluate(folder: str, sets: str | None) -> "dict[str, Metric]":
    from pipelines.evaluate import Evaluate, evaluate

    if sets is None:
        print("no evaluation sets: --evaluation names a folder of them")
        return {}
    return evaluate(Evaluate(checkpoint=folder, evaluation=sets))


def run_or_resubmit(settings: Pretrain) -> None:
    """Pretrain in this process or, with `resubmit`, in another one, again where it dies."""
    if not settings.resubmit or command.RESUBMITTED in os.environ:
        pretrain(settings)
        return
    from pipelines import restarts

    if code := restarts.resubmit(_run_folder(settings), settings.max_failures):
        sys.exit(code)


def cli() -> None:
    """The command line."""
    command.run(Pretrain, run_or_resubmit, "Pretrain a contrastive image-text model, from a pool to its numbers.")


if __name__ == "__main__":
    cli()
