"""Configuration of a training run: its model, objective, optimizer and data."""

import math
from dataclasses import dataclass, field, replace
from typing import Literal

from llip.config.model import ModelConfig
from llip.fields import check, setting

MOST_LANES = 1024

LossName = Literal["softmax", "sigmoid"]


@dataclass(frozen=True, kw_only=True)
class ObjectiveConfig:
    """The loss over the global batch, and how it is computed."""

    loss: LossName = "sigmoid"
    """softmax: symmetric InfoNCE (CLIP) · sigmoid: a binary decision for every pair (SigLIP, Llip)."""
    multi_positive: bool = False
    """A caption is a positive of every image that has an equal caption, not of its own alone (UniCL)."""
    distillation: float = 0.0
    """Share of the loss that follows a teacher's embeddings, which `pipelines/embed.py` adds to shards (MobileCLIP)."""
    teacher_scale: float | None = None
    """Factor of the teacher's cosines, in place of its own."""
    exchange: Literal["gather", "ring"] = setting("gather", operational=True)
    """Exchange of captions between ranks: all at once, or block by block around a ring (less memory)."""
    chunk: int | None = setting(None, operational=True)
    """Captions scored at once at most; memory grows with images times chunk. None: as many as suit the device."""
    split_gram: bool = True
    """Keep the Gram matrix in two halves where products are of bf16: accurate gradients also where heads cancel."""
    accumulation: int | None = setting(None, operational=True, excludes=("micro_batch",))
    """Micro-batches of a step on each rank; the loss stays that of the whole batch."""
    micro_batch: int | None = setting(None, operational=True, excludes=("accumulation",))
    """Images that a rank computes at once, in place of `accumulation`, which follows from it."""

    def __post_init__(self) -> None:
        check(self.loss in ("softmax", "sigmoid"), "objective.loss", self.loss, "softmax or sigmoid")
        check(self.exchange in ("gather", "ring"), "objective.exchange", self.exchange, "gather or ring")
        check(self.chunk is None or self.chunk >= 1, "objective.chunk", self.chunk, "at least 1, or None")
        share, scale = self.distillation, self.teacher_scale
        check(0 <= share <= 1, "objective.distillation", share, "in [0, 1]")
        check(scale is None or scale > 0, "objective.teacher_scale", scale, "positive, or None")
        idle = scale is not None and not share
        check(not idle, "objective.teacher_scale", scale, "left out where objective.distillation is 0")
        for name in ("accumulation", "micro_batch"):
            value = getattr(self, name)
            check(value is None or value >= 1, f"objective.{name}", value, "at least 1")
        check(
            self.accumulation is None or self.micro_batch is None,
            "objective.accumulation",
            self.accumulation,
            f"left out where objective.micro_batch is {self.micro_batch}: one follows from the other",
        )

    def micro_batches(self, images: int) -> int:
        """Micro-batches that a rank makes of its `images` of a step. Raises ValueError where there are too few."""
        pieces = self.accumulation or math.ceil(images / (self.micro_batch or images))
        check(pieces <= images, "objective.accumulation", pieces, f"at most {images}, a rank's images of a batch")
        return pieces


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """AdamW with linear warm-up and cosine decay to zero."""

    learning_rate: float = setting(5e-4, short="learning_rate")
    """Peak learning rate, at the end of the warm-up."""
    betas: tuple[float, float] | None = None
    """Decay of AdamW's moments; None: (0.9, 0.95) for the sigmoid loss (SigLIP), (0.9, 0.98) for softmax (CLIP)."""
    eps: float = 1e-6
    weight_decay: float = 0.2
    """Decay of matrices alone: norms, biases, scales and other tensors with fewer than 2 dimensions have none."""
    warmup_steps: int | None = None
    """Updates of the linear warm-up, in place of `warmup_share`."""
    warmup_share: float | None = setting(2000 / 390_624, excludes=("warmup_steps",))
    """Warm-up as a share of the run, so that it follows `steps`; the paper's is 2,000 of 390,624."""
    max_logit_scale: float = 100.0
    """The scale is clamped to [1, this] after every step."""
    max_gradient_norm: float | None = None
    """Gradients of a larger L2 norm are scaled down to it before the update; None: never, as in the paper."""

    def __post_init__(self) -> None:
        check(self.learning_rate > 0, "optimizer.learning_rate", self.learning_rate, "positive")
        check(all(0 <= b < 1 for b in self.betas or ()), "optimizer.betas", self.betas, "two numbers in [0, 1)")
        check(self.weight_decay >= 0, "optimizer.weight_decay", self.weight_decay, "at least 0")
        steps, share = self.warmup_steps, self.warmup_share
        check(steps is None or steps >= 0, "optimizer.warmup_steps", steps, "at least 0")
        check(share is None or 0 <= share < 1, "optimizer.warmup_share", share, "in [0, 1)")
        given = steps is not None or share is not None
        check(given, "optimizer.warmup_share", share, "given where optimizer.warmup_steps is not")
        check(self.max_logit_scale >= 1, "optimizer.max_logit_scale", self.max_logit_scale, "at least 1")
        norm = self.max_gradient_norm
        check(norm is None or norm > 0, "optimizer.max_gradient_norm", norm, "positive, or None")


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Data of a training step."""

    batch_size: int = setting(32768, short="batch_size")
    """Images of a step, over all ranks."""
    captions_per_image: int = setting(1, short="captions_per_image")
    """Captions of an image in one step; the loss is the mean over them."""
    synthetic_share: float = setting(0.0, short="synthetic_share")
    """Probability that a drawn caption is one of the row's synthetic ones, where it has any (column
    `synthetic_captions` of the shards)."""
    sub_captions: int | None = None
    """Most sentences of a drawn caption that are kept, one to so many at random (FLAIR: 3); None: all."""
    weights: tuple[float, ...] | None = setting(None, short="weights")
    """Shares of several shards folders in every batch, in any unit; None: in proportion to their rows."""
    lanes: int | None = None
    """Streams that a batch draws from equally; as many ranks at most train together, and see the same batches. None:
    the largest power of two that divides the batch, at most an eighth of it (or 8) and 1,024."""
    crop_scale: tuple[float, float] = (0.9, 1.0)
    """Area of the random crop, as a share of the image."""
    threads: int = setting(8, operational=True)
    """Threads that decode, on each rank."""
    prefetch: int = setting(4, operational=True)
    """Batches held ready, on each rank."""

    def __post_init__(self) -> None:
        check(self.batch_size >= 1, "data.batch_size", self.batch_size, "at least 1")
        lanes = self.lanes
        check(
            lanes is None or (lanes >= 1 and self.batch_size % lanes == 0),
            "data.lanes",
            lanes,
            f"a divisor of data.batch_size {self.batch_size}",
        )
        check(self.captions_per_image >= 1, "data.captions_per_image", self.captions_per_image, "at least 1")
        weights = self.weights
        check(weights is None or all(w > 0 for w in weights), "data.weights", weights, "positive numbers, or None")
        check(0 <= self.synthetic_share <= 1, "data.synthetic_share", self.synthetic_share, "in [0, 1]")
        sentences = self.sub_captions
        check(sentences is None or sentences >= 1, "data.sub_captions", sentences, "at least 1, or None")
        check(
            0 < self.crop_scale[0] <= self.crop_scale[1] <= 1,
            "data.crop_scale",
            self.crop_scale,
            "two increasing numbers in (0, 1]",
        )
        check(self.threads >= 1, "data.threads", self.threads, "at least 1")
        check(self.prefetch >= 1, "data.prefetch", self.prefetch, "at least 1")

    @property
    def lane_count(self) -> int:
        """`lanes`, or what follows from the batch."""
        if self.lanes is not None:
            return self.lanes
        return min(self.batch_size & -self.batch_size, 1 << (max(8, self.batch_size // 8).bit_length() - 1), MOST_LANES)


@dataclass(frozen=True, kw_only=True)
class TrainingConfig:
    """Everything that decides what a run learns: two runs with the same one on the same shards end alike."""

    model: ModelConfig
    objective: ObjectiveConfig = field(default_factory=ObjectiveConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    data: DataConfig = field(default_factory=DataConfig)
    init_from: str | None = setting(None, short="init_from")
    """File of a CLIP model with the same towers whose weights a run starts from; None: fresh weights."""
    steps: int | None = setting(390_624, short="steps", excludes=("epochs",))
    """Optimizer steps."""
    epochs: float | None = setting(None, short="epochs", excludes=("steps",))
    """Passes over the shards, in place of `steps`, which follow from it."""
    precision: Literal["fp32", "bf16"] = "bf16"
    """bf16: autocast of the towers; parameters, norms and losses stay in fp32."""
    compile: bool | None = setting(None, operational=True)
    """Compile the towers with torch.compile; None: on GPUs."""
    parallel: Literal["ddp", "fsdp", "hsdp"] = setting("ddp", operational=True)
    """Parts that ranks hold: ddp, the whole model each; fsdp (FSDP2), a share of parameters and optimizer state; hsdp
    (HSDP), a share among the ranks of a node, so that only gradients travel between nodes."""
    shard_precision: Literal["fp32", "bf16"] = "fp32"
    """Precision in which parameters travel between ranks that hold shards. bf16 halves the traffic and rounds norms,
    biases and embeddings; shards and gradients stay in fp32."""
    activation_checkpointing: bool = setting(False, operational=True)
    """Recompute the activations of transformer blocks in the backward pass."""
    log_every: int = setting(10, operational=True)
    """Steps between logged metrics."""
    checkpoint_every: int = setting(1000, operational=True)
    """Steps between checkpoints."""
    checkpoint_minutes: float | None = setting(10.0, operational=True)
    """Minutes after which a checkpoint is due in any case; None: only `checkpoint_every` counts."""
    hang_seconds: float | None = setting(180.0, operational=True)
    """Seconds after which a step hangs, or ten usual steps where that is more: every rank shows its stack, and workers
    start again. None: never."""
    keep_checkpoints: int = setting(2, operational=True)
    """Newest checkpoints kept."""
    evaluate_every: int | None = setting(None, operational=True)
    """Steps between evaluations in training; None: none."""
    ema_decay: float | None = None
    """Keep an exponential moving average of the weights, which is then what is evaluated and exported; None: none."""
    nonfinite: Literal["stop", "skip"] = setting("stop", operational=True)
    """Policy for a loss or gradient that is not finite: stop before the update, or leave the batch out and count it."""
    peak_flops: float | None = setting(None, operational=True)
    """FLOP/s that a device can do, for model FLOPs utilisation; None: what is known of it, if anything."""
    seed: int = setting(0, short="seed")
    """Draws weights, order of samples, crops and captions."""

    def __post_init__(self) -> None:
        check(self.precision in ("fp32", "bf16"), "precision", self.precision, "fp32 or bf16")
        check(self.parallel in ("ddp", "fsdp", "hsdp"), "parallel", self.parallel, "ddp, fsdp or hsdp")
        travel, sharded = self.shard_precision, self.parallel != "ddp" and self.precision == "bf16"
        check(travel in ("fp32", "bf16"), "shard_precision", travel, "fp32 or bf16")
        check(travel == "fp32" or sharded, "shard_precision", travel, "fp32 but for fsdp and hsdp in precision bf16")
        for name in ("log_every", "checkpoint_every", "keep_checkpoints"):
            check(getattr(self, name) >= 1, name, getattr(self, name), "at least 1")
        check(self.steps is None or self.steps >= 1, "steps", self.steps, "at least 1")
        check(self.epochs is None or self.epochs > 0, "epochs", self.epochs, "positive")
        check(
            (self.steps is None) != (self.epochs is None),
            "steps",
            self.steps,
            f"given where epochs are not (they are {self.epochs}), and only there",
        )
        for name in ("checkpoint_minutes", "hang_seconds"):
            time = getattr(self, name)
            check(time is None or time > 0, name, time, "positive, or None")
        every = self.evaluate_every
        check(every is None or every >= 1, "evaluate_every", every, "at least 1, or None")
        decay = self.ema_decay
        check(decay is None or 0 < decay < 1, "ema_decay", decay, "between 0 and 1, or None")
        peak = self.peak_flops
        check(peak is None or peak > 0, "peak_flops", peak, "positive, or None")
        check(self.nonfinite in ("stop", "skip"), "nonfinite", self.nonfinite, "stop or skip")
        synthetic = self.data.synthetic_share
        taught = self.objective.distillation > 0
        check(not (taught and synthetic), "data.synthetic_share", synthetic, "0 where objective.distillation is not")
        whole = not (taught and self.data.sub_captions)
        check(whole, "data.sub_captions", self.data.sub_captions, "None where a teacher knows whole captions")
        warmup = self.optimizer.warmup_steps
        check(
            self.steps is None or warmup is None or warmup < self.steps,
            "optimizer.warmup_steps",
            warmup,
            f"below steps {self.steps}",
        )

    @property
    def built_model(self) -> ModelConfig:
        """The model as it is created: with the bias of its loss.

        Softmax has none. The sigmoid's is -ln(batch) where none is given: a pair is then as likely a match as it is in
        the batch (Zhai et al. 2023, section 3.2, whose -10 is that of a batch of 22,000).
        """
        given = self.model.init_logit_bias
        bias = -math.log(self.data.batch_size) if given is None else given
        return replace(self.model, init_logit_bias=None if self.objective.loss == "softmax" else bias)

    @property
    def betas(self) -> tuple[float, float]:
        """AdamW's."""
        return self.optimizer.betas or ((0.9, 0.98) if self.objective.loss == "softmax" else (0.9, 0.95))

    @property
    def total_steps(self) -> int:
        """Optimizer steps of the run. Raises ValueError where they follow from epochs of shards: see `for_rows`."""
        if self.steps is None:
            raise ValueError("steps follow from epochs and the shards, which are not known here; give steps")
        return self.steps

    @property
    def warmup_steps(self) -> int:
        """Updates of the warm-up."""
        steps, share = self.optimizer.warmup_steps, self.optimizer.warmup_share
        return round(self.total_steps * (share or 0)) if steps is None else steps

    @property
    def samples(self) -> int:
        """Images seen by the whole run."""
        return self.total_steps * self.data.batch_size

    def for_rows(self, rows: int) -> "TrainingConfig":
        """The configuration for shards of `rows` rows: epochs become steps, at least one."""
        if self.epochs is None:
            return self
        return replace(self, steps=max(1, round(self.epochs * rows / self.data.batch_size)), epochs=None)
