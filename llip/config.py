"""Configuration of a model and of a training run: frozen, keyword-only dataclasses, checked on construction.

A configuration is plain data: `to_dict` makes it JSON, and `from_dict` reads it back and refuses unknown keys.
"""

import dataclasses
import types
import typing
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar

Head = Literal["class_token", "register", "mean", "learned_query", "text_query", "image_query"]
"""How the outputs of a tower become the feature that is compared (Llip, section 3, and the ablation of its gain).

- `class_token`: one token, projected (CLIP and SigLIP)
- `register`: K tokens, only the first is kept
- `mean`: uniform mixture of K tokens
- `learned_query`: mixture by a learned query that all captions share
- `text_query`: mixture by the caption (Llip)
- `image_query`: Llip mirrored, K tokens on the text side, mixed by the image
"""

Activation = Literal["quick_gelu", "gelu"]

MIXTURE_HEADS: tuple[Head, ...] = ("mean", "learned_query", "text_query", "image_query")
"""Heads that project every token to keys and values of several heads."""


def _check(condition: bool, field_name: str, value: object, expected: str) -> None:
    if not condition:
        raise ValueError(f"{field_name} is {value!r}; it has to be {expected}")


@dataclass(frozen=True, kw_only=True)
class VisionConfig:
    """A CLIP vision transformer."""

    image_size: int = 224
    """Side of the square input, pixels."""
    patch_size: int = 16
    """Side of a square patch, pixels."""
    width: int = 768
    layers: int = 12
    head_width: int = 64
    """Width of one self-attention head."""
    mlp_width: int | None = None
    """Hidden width of the MLP; four times `width` where not given."""
    tokens: int = 1
    """K: learnable tokens before the patches (1: the usual class token)."""
    patch_dropout: float = 0.0
    """Share of the patches dropped in training."""
    position_std: float | None = None
    """Standard deviation of the initial position embedding; width^-½ where not given."""

    def __post_init__(self) -> None:
        _check(
            self.image_size % self.patch_size == 0,
            "vision.image_size",
            self.image_size,
            f"a multiple of patch_size {self.patch_size}",
        )
        _check(
            self.width % self.head_width == 0, "vision.width", self.width, f"a multiple of head_width {self.head_width}"
        )
        _check(self.layers >= 1, "vision.layers", self.layers, "at least 1")
        _check(self.tokens >= 1, "vision.tokens", self.tokens, "at least 1")
        _check(0 <= self.patch_dropout < 1, "vision.patch_dropout", self.patch_dropout, "in [0, 1)")
        std = self.position_std
        _check(std is None or std > 0, "vision.position_std", std, "positive, or None")

    @property
    def patches(self) -> int:
        return (self.image_size // self.patch_size) ** 2


@dataclass(frozen=True, kw_only=True)
class TextConfig:
    """A CLIP causal text transformer."""

    context_length: int = 77
    """Longest caption, in tokens, start and end included; longer ones are cut."""
    vocabulary: int = 49408
    width: int = 512
    heads: int = 8
    layers: int = 12
    mlp_width: int | None = None
    """Hidden width of the MLP; four times `width` where not given."""
    tokens: int = 1
    """K on the text side: states kept for a caption (1: the state at its end-of-text token)."""

    def __post_init__(self) -> None:
        _check(self.context_length >= 3, "text.context_length", self.context_length, "at least 3")
        _check(self.width % self.heads == 0, "text.width", self.width, f"a multiple of heads {self.heads}")
        _check(self.layers >= 1, "text.layers", self.layers, "at least 1")
        _check(self.tokens >= 1, "text.tokens", self.tokens, "at least 1")


@dataclass(frozen=True, kw_only=True)
class HeadConfig:
    """How towers are pooled and compared."""

    kind: Head = "text_query"
    heads: int = 8
    """M: heads of the mixture."""
    temperature: float = 5.0
    """Divides the mixing logits."""
    norm: bool = False
    """LayerNorm over the full width on queries, keys and values (H/14 and G/14)."""
    patch_tokens: bool = False
    """Mix the K tokens and the P patches instead of the K tokens alone."""
    shared_projections: bool = False
    """Project all mixed tokens to keys and values by the same two matrices, as the paper prints it; False: each token
    by two of its own, as the authors' public release does."""

    def __post_init__(self) -> None:
        _check(self.kind in typing.get_args(Head), "head.kind", self.kind, f"one of {', '.join(typing.get_args(Head))}")
        _check(self.heads >= 1, "head.heads", self.heads, "at least 1")
        _check(self.temperature > 0, "head.temperature", self.temperature, "positive")


@dataclass(frozen=True, kw_only=True)
class PreprocessConfig:
    """How an image becomes the pixels that a vision tower was trained on, in evaluation; its size is the tower's."""

    mean: tuple[float, float, float] = (0.48145466, 0.4578275, 0.40821073)
    std: tuple[float, float, float] = (0.26862954, 0.26130258, 0.27577711)
    """Of the RGB channels in [0, 1]; as OpenAI's CLIP has them where not given."""
    resize: Literal["shortest", "longest", "squash"] = "shortest"
    """The side that gets the tower's size, before the rest is cut off (shortest) or filled (longest); squash: both."""
    interpolation: Literal["bicubic", "bilinear"] = "bicubic"
    fill: int = 0
    """Level of the borders where the longest side is resized."""

    def __post_init__(self) -> None:
        _check(_is_triple(self.mean), "preprocessing.mean", self.mean, "three numbers")
        _check(_is_triple(self.std) and min(self.std) > 0, "preprocessing.std", self.std, "three positive numbers")
        modes = ("shortest", "longest", "squash")
        _check(self.resize in modes, "preprocessing.resize", self.resize, f"one of {', '.join(modes)}")
        method = self.interpolation
        _check(method in ("bicubic", "bilinear"), "preprocessing.interpolation", method, "bicubic or bilinear")
        _check(0 <= self.fill <= 255, "preprocessing.fill", self.fill, "in [0, 255]")


def _is_triple(values: object) -> bool:
    return isinstance(values, tuple) and len(values) == 3 and all(isinstance(v, (int, float)) for v in values)


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """Two towers and the head that compares them."""

    embed_dim: int
    """d: width of the space in which images and captions are compared."""
    vision: VisionConfig
    text: TextConfig
    head: HeadConfig = field(default_factory=HeadConfig)
    activation: Activation = "quick_gelu"
    """Of the MLPs of both towers. gelu, the exact one, is that of many of open_clip's weights."""
    init_logit_scale: float = 1 / 0.07
    """Initial factor of the cosines; learned in log space."""
    init_logit_bias: float | None = None
    """Initial bias of the scores (sigmoid loss); None: no bias (InfoNCE)."""
    preprocessing: PreprocessConfig = field(default_factory=PreprocessConfig)

    def __post_init__(self) -> None:
        _check(self.activation in typing.get_args(Activation), "activation", self.activation, "quick_gelu or gelu")
        mixed = self.head.kind in MIXTURE_HEADS
        if mixed:
            _check(
                self.embed_dim % self.head.heads == 0,
                "head.heads",
                self.head.heads,
                f"a divisor of embed_dim {self.embed_dim}",
            )
        if self.head.kind in ("class_token", "image_query"):
            _check(self.vision.tokens == 1, "vision.tokens", self.vision.tokens, f"1 for a {self.head.kind} head")
        if self.head.kind != "image_query":
            _check(self.text.tokens == 1, "text.tokens", self.text.tokens, f"1 for a {self.head.kind} head")
        if self.head.patch_tokens:
            _check(
                mixed and self.head.kind != "image_query",
                "head.patch_tokens",
                True,
                f"False for a {self.head.kind} head",
            )
            _check(
                self.vision.patch_dropout == 0,
                "vision.patch_dropout",
                self.vision.patch_dropout,
                "0 where patches are mixed",
            )
        _check(
            self.init_logit_scale >= 1,
            "init_logit_scale",
            self.init_logit_scale,
            "at least 1 (its logarithm is clamped at 0)",
        )

    @property
    def mixture_tokens(self) -> int:
        """K of the mixture: what the head attends over."""
        if self.head.kind == "image_query":
            return self.text.tokens
        return self.vision.tokens + (self.vision.patches if self.head.patch_tokens else 0)


@dataclass(frozen=True, kw_only=True)
class ObjectiveConfig:
    """The loss over the global batch, and how it is computed."""

    loss: Literal["softmax", "sigmoid"] = "sigmoid"
    """softmax: symmetric InfoNCE (CLIP) · sigmoid: a binary decision for every pair (SigLIP, Llip)."""
    exchange: Literal["gather", "ring"] = "gather"
    """How captions travel between ranks: all at once, or block by block around a ring (less memory)."""
    chunk: int = 1024
    """Captions scored at once; memory grows with images times chunk."""
    split_gram: bool = True
    """Keep the Gram matrix in two halves where products are of bf16: accurate gradients also where heads cancel."""
    accumulation: int = 1
    """Micro-batches of a step; the loss stays that of the whole batch."""

    def __post_init__(self) -> None:
        _check(self.loss in ("softmax", "sigmoid"), "objective.loss", self.loss, "softmax or sigmoid")
        _check(self.exchange in ("gather", "ring"), "objective.exchange", self.exchange, "gather or ring")
        _check(self.chunk >= 1, "objective.chunk", self.chunk, "at least 1")
        _check(self.accumulation >= 1, "objective.accumulation", self.accumulation, "at least 1")


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """AdamW with linear warm-up and cosine decay to zero."""

    learning_rate: float = 5e-4
    betas: tuple[float, float] = (0.9, 0.95)
    eps: float = 1e-6
    weight_decay: float = 0.2
    """Of matrices only: not of norms, biases, scales and other tensors with fewer than 2 dimensions."""
    warmup_steps: int = 2000
    max_logit_scale: float = 100.0
    """The scale is clamped to [1, this] after every step."""

    def __post_init__(self) -> None:
        _check(self.learning_rate > 0, "optimizer.learning_rate", self.learning_rate, "positive")
        _check(all(0 <= b < 1 for b in self.betas), "optimizer.betas", self.betas, "two numbers in [0, 1)")
        _check(self.weight_decay >= 0, "optimizer.weight_decay", self.weight_decay, "at least 0")
        _check(self.warmup_steps >= 0, "optimizer.warmup_steps", self.warmup_steps, "at least 0")
        _check(self.max_logit_scale >= 1, "optimizer.max_logit_scale", self.max_logit_scale, "at least 1")


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """What a training step reads."""

    batch_size: int = 32768
    """Images of a step, over all ranks."""
    captions_per_image: int = 1
    """Captions of an image in one step; the loss is the mean over them."""
    synthetic_share: float = 0.0
    """Probability that a drawn caption is one of the row's synthetic ones, where it has any (column
    `synthetic_captions` of the shards)."""
    weights: tuple[float, ...] | None = None
    """Shares of several shards folders in every batch, in any unit; None: in proportion to their rows."""
    lanes: int = 1024
    """Streams (a power of two) that a batch draws from equally; world sizes that divide it see the same batches."""
    crop_scale: tuple[float, float] = (0.9, 1.0)
    """Area of the random crop, as a share of the image."""
    threads: int = 8
    """Threads that decode, on each rank."""
    prefetch: int = 4
    """Batches held ready, on each rank."""

    def __post_init__(self) -> None:
        _check(self.lanes >= 1 and self.lanes & (self.lanes - 1) == 0, "data.lanes", self.lanes, "a power of two")
        _check(
            self.batch_size >= 1 and self.batch_size % self.lanes == 0,
            "data.batch_size",
            self.batch_size,
            f"a multiple of lanes {self.lanes}",
        )
        _check(self.captions_per_image >= 1, "data.captions_per_image", self.captions_per_image, "at least 1")
        weights = self.weights
        _check(weights is None or all(w > 0 for w in weights), "data.weights", weights, "positive numbers, or None")
        _check(0 <= self.synthetic_share <= 1, "data.synthetic_share", self.synthetic_share, "in [0, 1]")
        _check(
            0 < self.crop_scale[0] <= self.crop_scale[1] <= 1,
            "data.crop_scale",
            self.crop_scale,
            "two increasing numbers in (0, 1]",
        )
        _check(self.threads >= 1, "data.threads", self.threads, "at least 1")
        _check(self.prefetch >= 1, "data.prefetch", self.prefetch, "at least 1")


@dataclass(frozen=True, kw_only=True)
class TrainingConfig:
    """Everything that decides what a run learns: two runs with the same one on the same shards end alike."""

    model: ModelConfig
    objective: ObjectiveConfig = field(default_factory=ObjectiveConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    data: DataConfig = field(default_factory=DataConfig)
    init_from: str | None = None
    """File of a CLIP model with the same towers whose weights a run starts from; None: fresh weights."""
    steps: int = 390_624
    """Optimizer steps."""
    precision: Literal["fp32", "bf16"] = "bf16"
    """bf16: autocast of the towers; parameters, norms and losses stay in fp32."""
    compile: bool = False
    """Compile the towers with torch.compile."""
    parallel: Literal["ddp", "fsdp"] = "ddp"
    """What several ranks hold: ddp, the whole model each; fsdp (FSDP2), a share of parameters and optimizer state."""
    activation_checkpointing: bool = False
    """Recompute the activations of transformer blocks in the backward pass."""
    log_every: int = 10
    """Steps between logged metrics."""
    checkpoint_every: int = 1000
    """Steps between checkpoints."""
    keep_checkpoints: int = 2
    """Newest checkpoints kept."""
    evaluate_every: int | None = None
    """Steps between evaluations in training; None: none."""
    ema_decay: float | None = None
    """Keep an exponential moving average of the weights, which is then what is evaluated and exported; None: none."""
    nonfinite: Literal["stop", "skip"] = "stop"
    """Where the loss or the gradient is not finite: stop before the update, or leave the batch out and count it."""
    peak_flops: float | None = None
    """FLOP/s that a device can do, for model FLOPs utilisation; None: what is known of it, if anything."""
    seed: int = 0

    def __post_init__(self) -> None:
        _check(self.precision in ("fp32", "bf16"), "precision", self.precision, "fp32 or bf16")
        _check(self.parallel in ("ddp", "fsdp"), "parallel", self.parallel, "ddp or fsdp")
        for name in ("steps", "log_every", "checkpoint_every", "keep_checkpoints"):
            _check(getattr(self, name) >= 1, name, getattr(self, name), "at least 1")
        every = self.evaluate_every
        _check(every is None or every >= 1, "evaluate_every", every, "at least 1, or None")
        decay = self.ema_decay
        _check(decay is None or 0 < decay < 1, "ema_decay", decay, "between 0 and 1, or None")
        peak = self.peak_flops
        _check(peak is None or peak > 0, "peak_flops", peak, "positive, or None")
        _check(self.nonfinite in ("stop", "skip"), "nonfinite", self.nonfinite, "stop or skip")
        warmup, bias = self.optimizer.warmup_steps, self.model.init_logit_bias
        _check(warmup < self.steps, "optimizer.warmup_steps", warmup, f"below steps {self.steps}")
        if self.objective.loss == "sigmoid":
            _check(bias is not None, "model.init_logit_bias", bias, "a number for the sigmoid loss")
        else:
            _check(bias is None, "model.init_logit_bias", bias, "None for the softmax loss, which no bias changes")

    @property
    def samples(self) -> int:
        """Images seen by the whole run."""
        return self.steps * self.data.batch_size


Config = TypeVar("Config")


def to_dict(config: Any) -> dict[str, Any]:
    """A configuration as nested dictionaries of JSON values."""
    return dataclasses.asdict(config)


def from_dict(kind: type[Config], values: dict[str, Any], where: str = "") -> Config:
    """A configuration from nested dictionaries. Raises ValueError for an unknown key, naming those that exist."""
    where = where or kind.__name__
    hints = typing.get_type_hints(kind)
    known = {f.name for f in dataclasses.fields(kind)}  # type: ignore[arg-type]
    if unknown := sorted(set(values) - known):
        raise ValueError(f"{where} has no field {unknown[0]!r}; it has {', '.join(sorted(known))}")
    return kind(**{name: _revive(hints[name], value, f"{where}.{name}") for name, value in values.items()})


def _revive(hint: Any, value: Any, where: str) -> Any:
    if dataclasses.is_dataclass(hint) and isinstance(value, dict):
        return from_dict(hint, value, where)  # type: ignore[arg-type]
    if isinstance(hint, types.UnionType):
        members = [m for m in typing.get_args(hint) if dataclasses.is_dataclass(m)]
        if members and isinstance(value, dict):
            return from_dict(members[0], value, where)  # type: ignore[arg-type]
    if isinstance(value, list) and tuple in [typing.get_origin(h) for h in (hint, *typing.get_args(hint))]:
        return tuple(value)
    return value


def differences(left: Any, right: Any, where: str = "") -> list[str]:
    """Where two configurations differ, as lines `field: left → right`."""
    a, b = (to_dict(c) if dataclasses.is_dataclass(c) else c for c in (left, right))
    if isinstance(a, dict) and isinstance(b, dict):
        return [
            line
            for key in sorted(a.keys() | b.keys())
            for line in differences(a.get(key), b.get(key), f"{where}.{key}".lstrip("."))
        ]
    same = a == b or (isinstance(a, (list, tuple)) and isinstance(b, (list, tuple)) and list(a) == list(b))
    return [] if same else [f"{where}: {a!r} → {b!r}"]
