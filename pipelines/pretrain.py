"""Pretrain a model, from a pool of images with captions to its numbers.

    uv run pipelines/pretrain.py                                   # the built-in corpus, Llip, a few minutes
    uv run pipelines/pretrain.py --objective siglip                # the same under another objective: data is made once
    python pipelines/pretrain.py --recipe llip_b16_k64 --pool s3://bucket/pool --output s3://bucket/work --workers 128

Run again, it goes on where it was: it resumes training from the last checkpoint, and leaves what is done.
"""

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from llip import storage
from llip.config import TrainingConfig
from llip.training import run_folder
from pipelines import command, prepare_data
from pipelines.settings import Objective, configure, run_name

if TYPE_CHECKING:  # torch and Ray are imported once the options are right, so that --help and a refusal come at once
    from llip.evaluation import Metric

_OF_RECIPE = "(default: the recipe's)"
Count = Annotated[int | None, tyro.conf.arg(metavar="INT", help_behavior_hint=_OF_RECIPE)]
Number = Annotated[float | None, tyro.conf.arg(metavar="FLOAT", help_behavior_hint=_OF_RECIPE)]
Folder = Annotated[str | None, tyro.conf.arg(metavar="FOLDER", help_behavior_hint="")]


@dataclass(frozen=True, kw_only=True)
class Pretrain:
    """What is trained, on what, and where. Options of the model and the optimizer replace the recipe's values."""

    recipe: str = "llip_tiny_k8"
    """Complete configuration to start from, such as clip_b32, siglip_l14 or llip_b16_k64; `tiny` ones suit a laptop."""
    objective: Annotated[
        Objective | None,
        tyro.conf.arg(metavar="clip|siglip|llip|register|mean|learned_query", help_behavior_hint=_OF_RECIPE),
    ] = None
    """Objective in place of the recipe's, on the same towers. register, mean and learned_query are Llip's ablations."""
    k: Count = None
    """Mixture tokens of an image."""
    heads: Count = None
    """Heads of the mixture; they divide the embedding width."""
    temperature: Number = None
    """Divides the mixing logits: higher mixes more evenly."""
    steps: Count = None
    """Optimizer steps."""
    batch_size: Count = None
    """Images of a step, over all workers."""
    learning_rate: Number = None
    """Highest learning rate, after the warm-up."""
    captions_per_image: Count = None
    """Captions of an image in one step."""
    logit_scale: Number = None
    """Initial factor of the cosines."""
    logit_bias: Number = None
    """Initial bias of the scores, of the sigmoid loss."""
    synthetic_share: Number = None
    """Probability that a drawn caption is one of the row's `synthetic_captions`, where it has any."""
    precision: Annotated[
        Literal["fp32", "bf16"] | None, tyro.conf.arg(metavar="fp32|bf16", help_behavior_hint=_OF_RECIPE)
    ] = None
    """bf16 runs the towers under autocast."""
    parallel: Annotated[
        Literal["ddp", "fsdp"] | None, tyro.conf.arg(metavar="ddp|fsdp", help_behavior_hint=_OF_RECIPE)
    ] = None
    """fsdp shares parameters and optimizer state among the workers instead of copying them to each."""
    ema_decay: Annotated[float | None, tyro.conf.arg(metavar="FLOAT", help_behavior_hint="(default: no average)")] = (
        None
    )
    """Average the weights over the updates with this decay; the average is evaluated and exported."""
    nonfinite: Annotated[
        Literal["stop", "skip"] | None, tyro.conf.arg(metavar="stop|skip", help_behavior_hint=_OF_RECIPE)
    ] = None
    """Where the loss or the gradient is not finite, stop before the update, or leave the batch out and count it."""
    init_from: Annotated[str | None, tyro.conf.arg(metavar="FILE", help_behavior_hint="")] = None
    """Weights of a CLIP model with the same towers, of OpenAI, open_clip or MetaCLIP, to start from."""
    seed: Count = None
    """Draws weights, order of samples, crops and captions."""
    checkpoint_every: Count = None
    """Steps between checkpoints."""
    evaluate_every: Annotated[int | None, tyro.conf.arg(metavar="INT", help_behavior_hint="(default: at the end)")] = (
        None
    )
    """Steps between evaluations in training."""

    pool: Folder = None
    """Images with captions to curate and shard: a folder or an s3:// prefix. Without it, the built-in corpus."""
    shards: Annotated[
        str | tuple[str, ...] | None, tyro.conf.arg(metavar="FOLDER [FOLDER ...]", help_behavior_hint="")
    ] = None
    """Finished shards to train on, of one folder or mixed from several: nothing is curated."""
    weights: Annotated[
        tuple[float, ...] | None, tyro.conf.arg(metavar="FLOAT [FLOAT ...]", help_behavior_hint="(default: by rows)")
    ] = None
    """Shares of the --shards folders in every batch, in any unit."""
    evaluation: Folder = None
    """Folder of evaluation sets; those of the built-in corpus where it is trained on."""
    corpus_images: Annotated[int | None, tyro.conf.arg(metavar="INT", help_behavior_hint="(default: 16000)")] = None
    """Images of the built-in corpus; with fewer, its evaluation sets shrink too."""
    output: str = "output"
    """Folder of everything that is made: pool, curated, shards, runs and the tracking database."""
    name: Annotated[str | None, tyro.conf.arg(metavar="STR", help_behavior_hint="(default: says what is trained)")] = (
        None
    )
    """Name of the run, and of its folder under runs."""
    peak_flops: Annotated[
        float | None, tyro.conf.arg(metavar="FLOAT", help_behavior_hint="(default: what is known of the GPU)")
    ] = None
    """Dense FLOP/s of one device, of which model FLOPs utilisation is the share that training uses."""
    profile: bool = False
    """Trace a few steps: profile/trace.json and profile/summary.md in the run's folder and in MLflow."""
    workers: Annotated[
        int | None, tyro.conf.arg(metavar="INT", help_behavior_hint="(default: GPUs of the cluster)")
    ] = None
    """Processes that train together; 0 trains in this process."""
    min_workers: Annotated[int | None, tyro.conf.arg(metavar="INT", help_behavior_hint="(default: all)")] = None
    """Fewest workers to go on with where nodes are lost; the run takes others once there are nodes again."""
    max_failures: int = 3
    """Restarts of workers that die, other than by preemption; -1: any number."""

    def __post_init__(self) -> None:
        if self.pool is not None and self.shards is not None:
            raise ValueError("--pool and --shards exclude each other: shards are what a pool is made into")
        if self.weights is not None and (isinstance(self.shards, str) or len(self.shards or ()) != len(self.weights)):
            raise ValueError("--weights needs several folders of --shards, and as many numbers as there are of them")
        if self.init_from is not None and not storage.exists(self.init_from):
            raise ValueError(f"--init-from {self.init_from} does not exist")
        if self.corpus_images is not None and (self.pool or self.shards):
            other = "--pool" if self.pool else "--shards"
            raise ValueError(f"--corpus-images is about the built-in corpus; leave it out with {other}")
        if self.workers is not None and self.workers < 0:
            raise ValueError(f"--workers is {self.workers}; it has to be at least 0")
        if self.min_workers is not None and not 1 <= self.min_workers <= (self.workers or 0):
            raise ValueError(f"--min-workers {self.min_workers} has to be between 1 and --workers {self.workers}")
        if self.evaluate_every is not None and self.evaluation is None and (self.pool or self.shards):
            raise ValueError("--evaluate-every needs --evaluation, a folder of evaluation sets")

    def training(self) -> TrainingConfig:
        """The recipe with the options applied. Raises ValueError where they contradict each other."""
        return configure(
            self.recipe,
            objective=self.objective,
            k=self.k,
            heads=self.heads,
            temperature=self.temperature,
            steps=self.steps,
            batch_size=self.batch_size,
            learning_rate=self.learning_rate,
            captions_per_image=self.captions_per_image,
            logit_scale=self.logit_scale,
            logit_bias=self.logit_bias,
            synthetic_share=self.synthetic_share,
            weights=self.weights,
            precision=self.precision,
            checkpoint_every=self.checkpoint_every,
            evaluate_every=self.evaluate_every,
            parallel=self.parallel,
            ema_decay=self.ema_decay,
            nonfinite=self.nonfinite,
            init_from=None if self.init_from is None else storage.absolute(self.init_from),
            peak_flops=self.peak_flops,
            seed=self.seed,
        )


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What a run left."""

    folder: str
    """URI of the run's folder."""
    checkpoint: str
    """URI of its last checkpoint."""
    metrics: "dict[str, Metric]"
    """By name, each beside its chance level; empty without evaluation sets."""


def pretrain(settings: Pretrain) -> Outcome:
    """Make the data, train and evaluate; whatever is finished is left as it is.

    Raises ValueError, before any work, for options that contradict each other, and for a folder of other settings.
    """
    config = settings.training()
    workers = _workers(settings, config)
    output = storage.absolute(settings.output)
    name = settings.name or run_name(settings.recipe, config)
    folder = storage.join(output, "runs", name)
    run_folder.check(folder, config)

    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # threads that spin steal the cores of those that decode
    from llip.training import checkpoint, stopping
    from llip.training.tracking import Tracking, default_store
    from pipelines import launching

    data = prepare_data.prepare(
        output,
        pool=_absolute(settings.pool),
        shards=_absolute(settings.shards),
        evaluation=_absolute(settings.evaluation),
        corpus_images=settings.corpus_images,
    )
    run_folder.claim(folder, config, data.shards)
    newest = checkpoint.latest(folder)
    uri, artifacts = default_store(output)
    if newest and checkpoint.step_of(newest) == config.steps:
        print(f"{folder} is trained already")
    else:
        if newest:
            print(f"{folder}: going on after step {checkpoint.step_of(newest)} of {config.steps}")
        run = launching.Run(
            config=config,
            shards=data.shards,
            folder=folder,
            evaluation=data.evaluation if config.evaluate_every else None,
            tracking=Tracking(uri=uri, experiment="llip", run_name=name, artifact_location=artifacts),
            documents=data.documents,
            profile=settings.profile,
        )
        if workers:
            command.start_ray()  # before the handler of SIGTERM, since Ray sets one of its own
        stopping.clear_stop(folder)
        with stopping.on_sigterm(folder):
            launching.fit(run, workers=workers, min_workers=settings.min_workers, max_failures=settings.max_failures)
    outcome = Outcome(
        folder=folder, checkpoint=checkpoint.latest(folder) or "", metrics=_evaluate(folder, data.evaluation)
    )
    print(f"\ncheckpoint   {outcome.checkpoint}")
    if uri.startswith("sqlite:"):
        print(f"all runs     uv run mlflow ui --backend-store-uri {uri}")
    return outcome


def _absolute(uri: Any) -> Any:
    """Of one folder, of several or of none."""
    return tuple(map(storage.absolute, uri)) if isinstance(uri, tuple) else uri and storage.absolute(uri)


def _workers(settings: Pretrain, config: TrainingConfig) -> int:
    """Processes to train with. Raises ValueError where they cannot share the lanes equally."""
    workers, lanes = settings.workers, config.data.lanes
    if workers is None:
        from pipelines import launching

        workers = launching.default_workers()
    if workers and lanes % workers:
        fitting = [str(2**i) for i in range(lanes.bit_length()) if 2**i <= workers * 2]
        raise ValueError(
            f"--workers {workers} does not divide the {lanes} lanes of the data; take {', '.join(fitting)}"
        )
    return workers


def _evaluate(folder: str, sets: str | None) -> "dict[str, Metric]":
    from pipelines.evaluate import Evaluate, evaluate

    if sets is None:
        print("no evaluation sets: --evaluation names a folder of them")
        return {}
    return evaluate(Evaluate(checkpoint=folder, evaluation=sets))


if __name__ == "__main__":
    command.run(Pretrain, pretrain, "Pretrain a contrastive image-text model, from a pool to its numbers.")
