"""Variants of the study: every head with either loss, and K, heads, patches and projections around two of them."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from typing import Any

from llip.config import ModelConfig

PLAIN = {"model.head.patch_tokens": False, "model.head.shared_projections": False, "model.text.tokens": 1}
UNQUERIED = PLAIN | {"model.head.heads": 8, "model.head.temperature": 5.0}
"""Settings of heads that no query mixes for."""
SHARED = {"model.head.kind": "text_query"} | PLAIN | {"model.head.shared_projections": True}
FORMS: dict[str, dict[str, Any]] = {
    "class_token": {"model.head.kind": "class_token", "model.vision.tokens": 1} | UNQUERIED,
    "register": {"model.head.kind": "register"} | UNQUERIED,
    "mean": {"model.head.kind": "mean"} | UNQUERIED,
    "learned_query": {"model.head.kind": "learned_query"} | PLAIN,
    "image_query": {"model.head.kind": "image_query", "model.vision.tokens": 1} | PLAIN,
    "text_query": {"model.head.kind": "text_query"} | PLAIN,
    "text_query_shared": SHARED,
    "text_query_patches": {"model.head.kind": "text_query"} | PLAIN | {"model.head.patch_tokens": True},
    "text_query_patches_shared": SHARED | {"model.head.patch_tokens": True},
}
"""Heads, and which tokens the caption's query mixes by which projections."""
LOSSES = ("softmax", "sigmoid")
TOKENS, TEXT_TOKENS, HEADS = "model.vision.tokens", "model.text.tokens", "model.head.heads"
TEMPERATURE, LOSS = "model.head.temperature", "objective.loss"
NAMES = {("class_token", "softmax"): "clip", ("class_token", "sigmoid"): "siglip"}


@dataclass(frozen=True, kw_only=True)
class Variant:
    """One model of the study."""

    form: str
    loss: str
    tokens: int | None = None
    """K where it is other than the recipe's."""
    heads: int | None = None
    """Heads where they are others than the recipe's."""

    @property
    def name(self) -> str:
        parts = [f"k{self.tokens}"] if self.tokens else []
        parts += [f"heads{self.heads}"] if self.heads else []
        return "-".join([NAMES.get((self.form, self.loss), f"{self.form}-{self.loss}"), *parts])

    @property
    def label(self) -> str:
        """The name, with what people call it."""
        return self.name if self.called == self.name else f"{self.name} ({self.called})"

    @property
    def called(self) -> str:
        """Name that people know, else the variant's own."""
        known = {PAPER: "the paper's Llip", DEFAULT: "the default recipe", CLIP: "CLIP", SIGLIP: "SigLIP"}
        return known.get(self, self.name)

    @property
    def queried(self) -> bool:
        """Whether its heads and its mixing temperature mean something."""
        return HEADS not in FORMS[self.form]

    @property
    def chooser(self) -> "Variant":
        """The variant whose settings it takes: with the recipe's K and heads, and, of forms that differ in the
        projections alone, the one that the paper or the default recipe has."""
        form = {"text_query_shared": "text_query", "text_query_patches": "text_query_patches_shared"}
        return replace(self, form=form.get(self.form, self.form), tokens=None, heads=None)

    @property
    def varies_counts(self) -> bool:
        """Whether it is there for its K or its heads."""
        return self.tokens is not None or self.heads is not None

    def values(self, model: ModelConfig) -> dict[str, Any]:
        """Settings by path, for a recipe with this model."""
        tokens, found = self.tokens or model.vision.tokens, {LOSS: self.loss} | FORMS[self.form]
        if self.form == "image_query":
            return found | {TEXT_TOKENS: tokens, HEADS: self.heads or model.head.heads}
        found |= {} if TOKENS in found else {TOKENS: tokens}
        return found | ({} if HEADS in found else {HEADS: self.heads or model.head.heads})


CLIP, SIGLIP = (Variant(form="class_token", loss=loss) for loss in LOSSES)
PAPER = Variant(form="text_query", loss="sigmoid")
DEFAULT = Variant(form="text_query_patches_shared", loss="softmax")
"""The recipes `llip_tiny_k8` and `llip_dense_tiny_k8`, around which K and heads are varied."""
BASELINES = (CLIP, SIGLIP, PAPER)
"""Variants that also get the steps that fit into the FLOPs and the time of the default recipe."""


def variants(model: ModelConfig, ks: Sequence[int], head_counts: Sequence[int]) -> list[Variant]:
    """All variants of a recipe's model, each once, the most telling first."""
    return list(dict.fromkeys([DEFAULT, *BASELINES, *_all(model, ks, head_counts)]))


def _all(model: ModelConfig, ks: Sequence[int], head_counts: Sequence[int]) -> Iterator[Variant]:
    for form in FORMS:
        for loss in LOSSES:
            yield Variant(form=form, loss=loss)
    for around in (DEFAULT, PAPER):
        for k in ks:
            yield replace(around, tokens=None if k == model.vision.tokens else k)
        for heads in head_counts:
            yield replace(around, heads=None if heads == model.head.heads else heads)


def chosen(found: Sequence[Variant], patterns: Sequence[str]) -> list[Variant]:
    """Variants whose names fit any pattern; all without patterns. Raises ValueError for a pattern that fits none."""
    for pattern in patterns:
        if not any(fnmatchcase(variant.name, pattern) for variant in found):
            raise ValueError(f"--only {pattern} fits none of {', '.join(variant.name for variant in found)}")
    return [v for v in found if not patterns or any(fnmatchcase(v.name, pattern) for pattern in patterns)]
