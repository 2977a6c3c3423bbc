"""Configuration of a model: towers, head, and how images are prepared for it."""

import math
import typing
from dataclasses import dataclass, field
from typing import Literal

from llip.fields import check, setting

Head = Literal["class_token", "register", "mean", "learned_query", "text_query", "image_query"]
"""Way from the outputs of a tower to the feature that is compared (Llip, section 3, and the ablation of its gain).

- `class_token`: one token, projected (CLIP and SigLIP)
- `register`: K tokens, only the first is kept
- `mean`: uniform mixture of K tokens
- `learned_query`: mixture by a learned query that all captions share
- `text_query`: mixture by the caption (Llip)
- `image_query`: Llip mirrored, K tokens on the text side, mixed by the image
"""

Activation = Literal["quick_gelu", "gelu", "gelu_tanh"]
"""QuickGELU, x · sigmoid(1.702 x), of OpenAI's CLIP; the exact GELU; its approximation by tanh (Hendrycks and Gimpel,
arXiv 1606.08415, section 2), of SigLIP and others that come from JAX."""

ACTIVATIONS: tuple[Activation, ...] = typing.get_args(Activation)

NORM_EPSILON = 1e-5
"""PyTorch's own, which CLIP's weights are trained with."""

MIXTURE_HEADS: tuple[Head, ...] = ("mean", "learned_query", "text_query", "image_query")
"""Heads that project every token to values, and to keys where there is a query."""
QUERIED_HEADS: tuple[Head, ...] = ("learned_query", "text_query", "image_query")
"""Heads with a query, for which the number of heads and the mixing temperature mean something."""


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
    tokens: int = setting(1, short="k")
    """K, mixture tokens of an image: learnable tokens before the patches (1: the usual class token)."""
    patch_dropout: float = 0.0
    """Share of the patches dropped in training."""
    position_std: float | None = None
    """Standard deviation of the initial position embedding; width^-½ where not given."""
    norm_epsilon: float = NORM_EPSILON
    """Added to the variance in every LayerNorm of the tower."""

    def __post_init__(self) -> None:
        check(
            self.image_size % self.patch_size == 0,
            "model.vision.image_size",
            self.image_size,
            f"a multiple of patch_size {self.patch_size}",
        )
        check(
            self.width % self.head_width == 0,
            "model.vision.width",
            self.width,
            f"a multiple of head_width {self.head_width}",
        )
        check(self.layers >= 1, "model.vision.layers", self.layers, "at least 1")
        check(self.tokens >= 1, "model.vision.tokens", self.tokens, "at least 1")
        check(0 <= self.patch_dropout < 1, "model.vision.patch_dropout", self.patch_dropout, "in [0, 1)")
        std = self.position_std
        check(std is None or std > 0, "model.vision.position_std", std, "positive, or None")
        check(self.norm_epsilon > 0, "model.vision.norm_epsilon", self.norm_epsilon, "positive")

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
    activation: Activation | None = None
    """Activation of this tower's MLPs; the model's where not given."""
    norm_epsilon: float = NORM_EPSILON
    """Added to the variance in every LayerNorm of the tower."""

    def __post_init__(self) -> None:
        check(self.context_length >= 3, "model.text.context_length", self.context_length, "at least 3")
        check(self.width % self.heads == 0, "model.text.width", self.width, f"a multiple of heads {self.heads}")
        check(self.layers >= 1, "model.text.layers", self.layers, "at least 1")
        check(self.tokens >= 1, "model.text.tokens", self.tokens, "at least 1")
        known = self.activation is None or self.activation in ACTIVATIONS
        check(known, "model.text.activation", self.activation, f"{' or '.join(ACTIVATIONS)}, or None")
        check(self.norm_epsilon > 0, "model.text.norm_epsilon", self.norm_epsilon, "positive")


@dataclass(frozen=True, kw_only=True)
class HeadConfig:
    """Pooling and comparison of the towers' outputs."""

    kind: Head = "text_query"
    """Way from the outputs of a tower to the feature that is compared."""
    heads: int = setting(8, short="heads")
    """M: heads of the mixture; they divide the embedding width."""
    temperature: float = setting(5.0, short="temperature")
    """Mixing temperature: divides the mixing logits, so a higher one mixes more evenly."""
    relative_temperature: bool = False
    """Count the temperature in units of the square root of a head's width, so that M changes no logit's spread."""
    norm: bool = False
    """LayerNorm over the full width on queries, keys and values (H/14 and G/14)."""
    patch_tokens: bool = False
    """Mix the K tokens and the P patches instead of the K tokens alone."""
    shared_projections: bool = False
    """Project all mixed tokens to keys and values by the same two matrices, as the paper prints it; False: each token
    by two of its own, as the authors' public release does."""
    empty_token: bool = False
    """Mix a token of zeros too, so that a caption may attend to nothing (FLAIR)."""
    global_weight: float = 0.0
    """Share of a second loss, of the first token's own feature with the same captions; only patches are then mixed
    (FLAIR: 0.5)."""

    def __post_init__(self) -> None:
        check(
            self.kind in typing.get_args(Head),
            "model.head.kind",
            self.kind,
            f"one of {', '.join(typing.get_args(Head))}",
        )
        check(self.heads >= 1, "model.head.heads", self.heads, "at least 1")
        check(self.temperature > 0, "model.head.temperature", self.temperature, "positive")
        for name, unused in (("heads", 8), ("temperature", 5.0)):
            value, left = getattr(self, name), f"left at {unused}: no query mixes tokens for a {self.kind} head"
            check(self.kind in QUERIED_HEADS or value == unused, f"model.head.{name}", value, left)
        check(
            self.kind in QUERIED_HEADS or not self.relative_temperature,
            "model.head.relative_temperature",
            True,
            f"False: no query mixes tokens for a {self.kind} head",
        )

        queried = self.kind in QUERIED_HEADS
        check(queried or not self.empty_token, "model.head.empty_token", True, f"False for a {self.kind} head")
        weight, patches = self.global_weight, self.kind == "text_query" and self.patch_tokens
        check(0 <= weight < 1, "model.head.global_weight", weight, "in [0, 1)")
        check(patches or not weight, "model.head.global_weight", weight, "0 where captions do not mix patch tokens")

    def mixing_temperature(self, embed_dim: int) -> float:
        """Divisor of the mixing logits of heads that share `embed_dim`."""
        return self.temperature * (math.sqrt(embed_dim / self.heads) if self.relative_temperature else 1)


@dataclass(frozen=True, kw_only=True)
class PreprocessConfig:
    """Way from an image to the pixels that a vision tower was trained on, in evaluation; their size is the tower's."""

    mean: tuple[float, float, float] = (0.48145466, 0.4578275, 0.40821073)
    std: tuple[float, float, float] = (0.26862954, 0.26130258, 0.27577711)
    """Mean and standard deviation of the RGB channels in [0, 1]; as OpenAI's CLIP has them where not given."""
    resize: Literal["shortest", "longest", "squash"] = "shortest"
    """The side that gets the tower's size, before the rest is cut off (shortest) or filled (longest); squash: both."""
    interpolation: Literal["bicubic", "bilinear"] = "bicubic"
    fill: int = 0
    """Level of the borders where the longest side is resized."""

    def __post_init__(self) -> None:
        check(_is_triple(self.mean), "preprocessing.mean", self.mean, "three numbers")
        check(_is_triple(self.std) and min(self.std) > 0, "preprocessing.std", self.std, "three positive numbers")
        modes = ("shortest", "longest", "squash")
        check(self.resize in modes, "preprocessing.resize", self.resize, f"one of {', '.join(modes)}")
        method = self.interpolation
        check(method in ("bicubic", "bilinear"), "preprocessing.interpolation", method, "bicubic or bilinear")
        check(0 <= self.fill <= 255, "preprocessing.fill", self.fill, "in [0, 255]")


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
    """Activation of both towers' MLPs. Many of open_clip's weights have gelu, the exact one, SigLIP's gelu_tanh."""
    init_logit_scale: float = setting(1 / 0.07, short="logit_scale")
    """Initial factor of the cosines; learned in log space."""
    init_logit_bias: float | None = setting(None, short="logit_bias")
    """Initial bias of the scores for the sigmoid loss, -ln(batch) where none is given; softmax has no bias."""
    word_weight: float = 0.0
    """Weight of the prediction of a caption's words from the patches, added to the loss in training (SuperCLIP)."""
    preprocessing: PreprocessConfig = field(default_factory=PreprocessConfig)

    def __post_init__(self) -> None:
        check(self.word_weight >= 0, "model.word_weight", self.word_weight, "at least 0")
        check(self.activation in ACTIVATIONS, "model.activation", self.activation, " or ".join(ACTIVATIONS))
        mixed = self.head.kind in MIXTURE_HEADS
        if self.head.kind in QUERIED_HEADS:
            check(
                self.embed_dim % self.head.heads == 0,
                "model.head.heads",
                self.head.heads,
                f"a divisor of embed_dim {self.embed_dim}",
            )
        named = "a global loss" if self.head.global_weight else f"a {self.head.kind} head"
        if self.head.kind in ("class_token", "image_query") or self.head.global_weight:
            check(self.vision.tokens == 1, "model.vision.tokens", self.vision.tokens, f"1 for {named}")
        if self.head.kind != "image_query":
            check(self.text.tokens == 1, "model.text.tokens", self.text.tokens, f"1 for a {self.head.kind} head")
        if self.head.patch_tokens:
            check(
                mixed and self.head.kind != "image_query",
                "model.head.patch_tokens",
                True,
                f"False for a {self.head.kind} head",
            )
            check(
                self.vision.patch_dropout == 0 or self.head.shared_projections,
                "model.vision.patch_dropout",
                self.vision.patch_dropout,
                "0 where patches are mixed by projections of their own",
            )
        check(
            self.init_logit_scale >= 1,
            "model.init_logit_scale",
            self.init_logit_scale,
            "at least 1 (its logarithm is clamped at 0)",
        )

    @property
    def mixing_temperature(self) -> float:
        """Divisor of the mixing logits."""
        return self.head.mixing_temperature(self.embed_dim)

    @property
    def mixture_tokens(self) -> int:
        """K of the mixture: what the head attends over."""
        if self.head.kind == "image_query":
            return self.text.tokens
        tokens = 0 if self.head.global_weight else self.vision.tokens
        return tokens + (self.vision.patches if self.head.patch_tokens else 0)

    @property
    def kept_states(self) -> int:
        """States of an image, tokens first, that its head takes."""
        if self.head.kind in ("class_token", "register", "image_query"):
            return 1
        return self.vision.tokens + (self.vision.patches if self.head.patch_tokens else 0)
