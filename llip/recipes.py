"""Recipes: functions that return the complete configuration of a training run. `recipe(name)` finds one by its name.

A new size is one more entry of SIZES; a new family is one more function, registered at the end of the file.
"""

import difflib
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

from llip.config import (
    DataConfig,
    Head,
    HeadConfig,
    ModelConfig,
    ObjectiveConfig,
    OptimizerConfig,
    TextConfig,
    TrainingConfig,
    VisionConfig,
)

SIGLIP_INIT_BIAS = -10.0
"""About -log of the paper's batch: at first a pair is as likely a match as it is in the batch."""


@dataclass(frozen=True, kw_only=True)
class Size:
    """Towers of one size, and what the paper trains them with."""

    embed_dim: int
    vision: VisionConfig
    text: TextConfig
    mixture_heads: int = 8
    temperature: float = 5.0
    norm: bool = False
    learning_rate: float = 5e-4
    logit_scale: float = 1 / 0.07
    logit_bias: float = SIGLIP_INIT_BIAS
    """Initial ones; the bias is that of the sigmoid losses."""
    activation_checkpointing: bool = False


def _base(patch_size: int) -> Size:
    return Size(
        embed_dim=512,
        vision=VisionConfig(patch_size=patch_size, width=768, layers=12, head_width=64),
        text=TextConfig(width=512, heads=8, layers=12),
    )


SIZES: dict[str, Size] = {
    "tiny": Size(
        embed_dim=64,
        # positions as large as the embedded patches, which drown those of width^-½
        vision=VisionConfig(image_size=48, patch_size=12, width=128, layers=4, head_width=32, position_std=0.7),
        text=TextConfig(context_length=32, width=128, heads=4, layers=1),
        mixture_heads=4,
        learning_rate=1e-3,
        logit_scale=10.0,
        logit_bias=-5.0,
    ),
    "b32": _base(32),
    "b16": _base(16),
    "l14": Size(
        embed_dim=768,
        vision=VisionConfig(patch_size=14, width=1024, layers=24, head_width=64),
        text=TextConfig(context_length=64, width=768, heads=12, layers=12),
        temperature=1.0,
        learning_rate=4e-4,
    ),
    "h14": Size(
        embed_dim=1024,
        vision=VisionConfig(patch_size=14, width=1280, layers=32, head_width=80),
        text=TextConfig(width=1024, heads=16, layers=24),
        norm=True,
        learning_rate=4e-4,
        activation_checkpointing=True,
    ),
    "g14": Size(
        embed_dim=1280,
        vision=VisionConfig(patch_size=14, width=1664, layers=48, head_width=104, mlp_width=8192),
        text=TextConfig(width=1280, heads=20, layers=32),
        norm=True,
        learning_rate=4e-4,
        activation_checkpointing=True,
    ),
}


def _training(size: str, model: ModelConfig) -> TrainingConfig:
    """The paper's schedule (12.8 B pairs, 390,624 steps of 32,768) or, for `tiny`, a few minutes of two CPU cores."""
    towers = SIZES[size]
    softmax = model.init_logit_bias is None
    optimizer = OptimizerConfig(learning_rate=towers.learning_rate, betas=(0.9, 0.98) if softmax else (0.9, 0.95))
    objective = ObjectiveConfig(loss="softmax" if softmax else "sigmoid")
    if size == "tiny":
        return TrainingConfig(
            model=model,
            objective=objective,
            optimizer=replace(optimizer, warmup_steps=100),
            # whole pictures: the corpus itself moves and scales what it draws
            data=DataConfig(batch_size=64, captions_per_image=4, lanes=8, crop_scale=(1.0, 1.0), threads=1),
            steps=1200,
            precision="fp32",
            checkpoint_every=200,
        )
    return TrainingConfig(
        model=model, objective=objective, optimizer=optimizer, activation_checkpointing=towers.activation_checkpointing
    )


def clip(size: str) -> TrainingConfig:
    """CLIP: one class token, symmetric InfoNCE (MetaCLIP's recipe).

    `python pipelines/pretrain.py --recipe clip_b32 --pool s3://bucket/pool --workers 128`
    The paper's ImageNet zero-shot accuracy: B/32 67.6, B/16 72.1, L/14 79.2, H/14 80.5, bigG/14 82.1.
    """
    towers = SIZES[size]
    model = ModelConfig(
        embed_dim=towers.embed_dim,
        vision=towers.vision,
        text=towers.text,
        head=HeadConfig(kind="class_token"),
        init_logit_scale=towers.logit_scale,
    )
    return _training(size, model)


def siglip(size: str) -> TrainingConfig:
    """SigLIP on the same towers: only the loss, its bias and beta2 differ from `clip`.

    `python pipelines/pretrain.py --recipe siglip_b32 --pool s3://bucket/pool --workers 128`
    The paper's ImageNet zero-shot accuracy: B/32 67.3, B/16 72.3, L/14 79.4.
    """
    model = replace(clip(size).model, init_logit_bias=SIZES[size].logit_bias)
    return _training(size, model)


def llip(size: str, tokens: int) -> TrainingConfig:
    """Llip: K mixture tokens, mixed by each caption, sigmoid loss over all pairs.

    `python pipelines/pretrain.py --recipe llip_b32_k64 --pool s3://bucket/pool --workers 128`
    The paper's ImageNet accuracy: L/14 80.9 with K=32; with K=64 B/32 70.4, B/16 75.3, H/14 82.7, bigG/14 83.5.
    """
    return mixture("text_query", size, tokens)


def mixture(kind: Head, size: str, tokens: int) -> TrainingConfig:
    """Llip and the models that its gain is made of.

    The paper's ImageNet accuracy at B/32, K=64: `register` 67.2, `mean` 68.6, `learned_query` 68.8, `text_query` 70.4.

    `python pipelines/pretrain.py --recipe mean_b32_k64 --pool s3://bucket/pool --workers 128`
    `image_query`, tokens on the text side mixed by the image, is a question that the paper leaves open.
    """
    towers = SIZES[size]
    text_side = kind == "image_query"
    model = ModelConfig(
        embed_dim=towers.embed_dim,
        vision=replace(towers.vision, tokens=1 if text_side else tokens),
        text=replace(towers.text, tokens=tokens if text_side else 1),
        head=HeadConfig(kind=kind, heads=towers.mixture_heads, temperature=towers.temperature, norm=towers.norm),
        init_logit_scale=towers.logit_scale,
        init_logit_bias=towers.logit_bias,
    )
    return _training(size, model)


ABLATIONS: tuple[Head, ...] = ("register", "mean", "learned_query", "image_query")


def size_of(model: ModelConfig) -> str:
    """The size of a recipe's model, whatever its head and its number of tokens."""
    return next(name for name, size in SIZES.items() if replace(model.vision, tokens=1) == size.vision)


def _register() -> dict[str, Callable[[], TrainingConfig]]:
    recipes: dict[str, Callable[[], TrainingConfig]] = {}
    for size in SIZES:
        recipes[f"clip_{size}"] = partial(clip, size)
        recipes[f"siglip_{size}"] = partial(siglip, size)
        for tokens in (8, 16) if size == "tiny" else (32, 64, 128):
            recipes[f"llip_{size}_k{tokens}"] = partial(llip, size, tokens)
            for kind in ABLATIONS:
                recipes[f"{kind}_{size}_k{tokens}"] = partial(mixture, kind, size, tokens)
    return recipes


RECIPES = _register()


def recipe(name: str) -> TrainingConfig:
    """The configuration of a recipe. Raises ValueError for an unknown name, with those that come near it."""
    if name not in RECIPES:
        near = difflib.get_close_matches(name, RECIPES, n=3) or sorted(RECIPES)[:3]
        raise ValueError(f"there is no recipe {name!r}; did you mean {', '.join(near)}?")
    return RECIPES[name]()
