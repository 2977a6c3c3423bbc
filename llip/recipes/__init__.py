"""Recipes: functions that return the complete configuration of a training run.

    python -m llip.recipes                 # all of them, with parameters, FLOPs, batch, steps, accuracy to expect
    python -m llip.recipes b16 cc12m       # those whose names hold these words

`--objective.loss sigmoid` or `softmax` changes the loss of any of them, its bias and beta2 with it.
`recipe(name)` finds one by its name, `load(source)` also `module:function`, a TOML file and the folder of a run. A new
size is one more entry of SIZES (`sizes.py`); a new family is one more function, registered at the end of the file.
"""

import difflib
import importlib
import os
import sys
import tomllib
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

from llip import storage
from llip.config import (
    DataConfig,
    Head,
    HeadConfig,
    LossName,
    ModelConfig,
    ObjectiveConfig,
    OptimizerConfig,
    TrainingConfig,
)
from llip.fields import flattened, from_dict, override
from llip.recipes.sizes import SIZES

RUN_CONFIG = "config.json"
"""File of a run's folder that holds its configuration, under `training`."""


def _training(size: str, model: ModelConfig, loss: LossName = "sigmoid") -> TrainingConfig:
    """The paper's schedule (12.8 B pairs, 390,624 steps of 32,768) or, at small scale, minutes of two CPU cores."""
    towers = SIZES[size]
    optimizer, objective = OptimizerConfig(learning_rate=towers.learning_rate), ObjectiveConfig(loss=loss)
    if towers.small_scale:
        return TrainingConfig(
            model=model,
            objective=objective,
            optimizer=replace(optimizer, warmup_share=1 / 12),
            # whole images: the corpus itself moves and scales what it draws
            data=DataConfig(batch_size=64, captions_per_image=4, crop_scale=(1.0, 1.0), threads=1),
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
        init_logit_bias=towers.logit_bias,
    )
    return _training(size, model, "softmax")


def siglip(size: str) -> TrainingConfig:
    """SigLIP on the same towers: only the loss, its bias and beta2 differ from `clip`.

    `python pipelines/pretrain.py --recipe siglip_b32 --pool s3://bucket/pool --workers 128`
    The paper's ImageNet zero-shot accuracy: B/32 67.3, B/16 72.3, L/14 79.4.
    """
    return _training(size, clip(size).model)


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
    queried = kind in ("learned_query", "text_query", "image_query")
    head = HeadConfig(kind=kind, norm=towers.norm)
    model = ModelConfig(
        embed_dim=towers.embed_dim,
        vision=replace(towers.vision, tokens=1 if text_side else tokens),
        text=replace(towers.text, tokens=tokens if text_side else 1),
        head=replace(head, heads=towers.mixture_heads, temperature=towers.temperature) if queried else head,
        init_logit_scale=towers.logit_scale,
        init_logit_bias=towers.logit_bias,
    )
    return _training(size, model)


def llip_softmax(size: str, tokens: int) -> TrainingConfig:
    """Llip with CLIP's loss: symmetric InfoNCE over the mixed scores, and CLIP's beta2.

    `python pipelines/pretrain.py --recipe llip_softmax_b16_k64 --pool s3://bucket/pool --workers 128`
    """
    return _training(size, llip(size, tokens).model, "softmax")


def llip_patch(size: str, tokens: int) -> TrainingConfig:
    """Llip that mixes the patch tokens too, at mixing temperature 1 (the rebuttal's "all tokens", table R3).

    `python pipelines/pretrain.py --recipe llip_patch_b32_k64 --pool s3://bucket/pool --workers 128`
    The rebuttal's ImageNet accuracy at B/32: K=1 68.2, K=32 70.4, K=64 70.7, K=128 71.5.
    """
    model = llip(size, tokens).model
    head = replace(model.head, patch_tokens=True, temperature=SIZES[size].patch_temperature)
    return _training(size, replace(model, head=head))


def llip_dense(size: str, tokens: int) -> TrainingConfig:
    """Llip over everything that the tower sees: patch tokens too, projections that all tokens share, softmax loss.

    `python pipelines/pretrain.py --recipe llip_dense_b16_k32 --pool s3://bucket/pool --workers 128`
    Not in the paper, which prints shared projections and mixes K tokens alone. On the built-in corpus it learns where
    things are, which no other recipe does; nobody has measured it on ImageNet.
    """
    model = llip(size, tokens).model
    head = replace(model.head, patch_tokens=True, shared_projections=True)
    return _training(size, replace(model, head=head), "softmax")


def superclip(size: str) -> TrainingConfig:
    """CLIP that also predicts the words of captions from patches, at weight 1 (SuperCLIP, arXiv 2512.14480).

    `python pipelines/pretrain.py --recipe superclip_b16 --pool s3://bucket/pool --workers 128`
    """
    config = clip(size)
    return replace(config, model=replace(config.model, word_weight=1.0))


def flair(size: str) -> TrainingConfig:
    """FLAIR: captions attend to the patches or to nothing, beside a global loss of the class token (arXiv 2412.03561).

    `python pipelines/pretrain.py --recipe flair_b16 --pool s3://bucket/pool --workers 128`
    Both losses are sigmoids over the same pairs, in equal parts, and an image's captions, eight a step, are all its
    positives: one to three sentences each of its long captions.
    """
    towers, config = SIZES[size], siglip(size)
    head = HeadConfig(
        kind="text_query",
        heads=towers.mixture_heads,
        temperature=1.0,
        relative_temperature=True,
        norm=towers.norm,
        patch_tokens=True,
        shared_projections=True,
        empty_token=True,
        global_weight=0.5,
    )
    captions = config.data.captions_per_image if towers.small_scale else 8
    data = replace(config.data, captions_per_image=captions, sub_captions=3)
    return replace(config, model=replace(config.model, head=head), data=data)


DATASETS = {"cc3m": 40, "cc12m": 35, "yfcc15m": 25}
"""Epochs of the academic scale, by data set (SLIP's CLIP models)."""


def academic(config: TrainingConfig, dataset: str) -> TrainingConfig:
    """A model at the academic scale: CC3M, CC12M or YFCC15M, batch 4,096.

    `python pipelines/pretrain.py --recipe llip_b16_k32_cc12m --pool s3://bucket/cc12m --curation none --workers 8`
    `… --workers 0 --objective.micro-batch 256` on one GPU: the same batches by accumulation.

    The settings are those of SLIP's CLIP models (Mu et al. 2021, arXiv 2112.12750, and their released command): AdamW,
    rate 5e-4, weight decay 0.5, beta2 0.98, eps 1e-8, one epoch of warm-up, cosine to 0, crops of 0.5 to 1.0 of the
    area. Their ImageNet zero-shot accuracy with ViT-B/16: CC3M 17.1, CC12M 36.5, YFCC15M 37.6. SigLIP and Llip keep
    beta2 0.95; nobody has published them with these settings.
    """
    epochs = DATASETS[dataset]
    return replace(
        config,
        optimizer=replace(config.optimizer, learning_rate=5e-4, weight_decay=0.5, eps=1e-8, warmup_share=1 / epochs),
        data=replace(config.data, batch_size=4096, crop_scale=(0.5, 1.0)),
        steps=None,
        epochs=epochs,
    )


def shortened(config: TrainingConfig) -> TrainingConfig:
    """The first and longest part of CLIPA's training: images of half the side, captions of a quarter of the context.

    `python pipelines/pretrain.py --recipe clip_b16_short --pool s3://bucket/pool --workers 128`
    The larger the towers, the fewer tokens of images and captions they need in training (Li et al. 2023, arXiv
    2305.07017, which shortens images by resizing, and captions by their syntax; here they are cut, to at least 16).
    """
    vision, text = config.model.vision, config.model.text
    size = max(1, vision.image_size // vision.patch_size // 2) * vision.patch_size
    model = replace(
        config.model,
        vision=replace(vision, image_size=size),
        text=replace(text, context_length=max(16, text.context_length // 4)),
    )
    return replace(config, model=model)


def full_length(config: TrainingConfig) -> TrainingConfig:
    """The end of CLIPA's training, from the weights of `shortened`: full images and captions, positions resized.

    `python pipelines/pretrain.py --recipe clip_b16_end --init-from output/runs/clip_b16_short-seed0 --workers 128`
    A twentieth of the steps at a tenth of the rate: numbers of this project, not of the paper.
    """
    optimizer = replace(config.optimizer, learning_rate=config.optimizer.learning_rate / 10, warmup_share=0.1)
    return replace(config, optimizer=optimizer, steps=config.total_steps // 20)


ABLATIONS: tuple[Head, ...] = ("register", "mean", "learned_query", "image_query")
DEFAULT = "llip_dense_tiny_k8"
"""The recipe that entry points train where none is named."""

EXPECTED: dict[str, float] = {
    "clip_b32": 67.6,
    "clip_b16": 72.1,
    "clip_l14": 79.2,
    "clip_h14": 80.5,
    "clip_g14": 82.1,
    "siglip_b32": 67.3,
    "siglip_b16": 72.3,
    "siglip_l14": 79.4,
    "llip_b32_k32": 70.1,
    "llip_b32_k64": 70.4,
    "llip_b32_k128": 71.2,
    "llip_b16_k64": 75.3,
    "llip_l14_k32": 80.9,
    "llip_h14_k64": 82.7,
    "llip_g14_k64": 83.5,
    "register_b32_k64": 67.2,
    "mean_b32_k64": 68.6,
    "learned_query_b32_k64": 68.8,
    "llip_patch_b32_k32": 70.4,
    "llip_patch_b32_k64": 70.7,
    "llip_patch_b32_k128": 71.5,
    "clip_b16_cc3m": 17.1,
    "clip_b16_cc12m": 36.5,
    "clip_b16_yfcc15m": 37.6,
}
"""ImageNet zero-shot accuracy, percent, as published: by the Llip paper and its rebuttal, academic ones by SLIP."""


def _register() -> dict[str, Callable[[], TrainingConfig]]:
    recipes: dict[str, Callable[[], TrainingConfig]] = {}
    for size, towers in SIZES.items():
        recipes[f"clip_{size}"] = partial(clip, size)
        recipes[f"siglip_{size}"] = partial(siglip, size)
        recipes[f"superclip_{size}"] = partial(superclip, size)
        recipes[f"flair_{size}"] = partial(flair, size)
        for tokens in (8, 16) if towers.small_scale else (32, 64, 128):
            recipes[f"llip_{size}_k{tokens}"] = partial(llip, size, tokens)
            recipes[f"llip_softmax_{size}_k{tokens}"] = partial(llip_softmax, size, tokens)
            recipes[f"llip_patch_{size}_k{tokens}"] = partial(llip_patch, size, tokens)
            recipes[f"llip_dense_{size}_k{tokens}"] = partial(llip_dense, size, tokens)
            for kind in ABLATIONS:
                recipes[f"{kind}_{size}_k{tokens}"] = partial(mixture, kind, size, tokens)
        for name in (f"clip_{size}", f"llip_dense_{size}_k{8 if towers.small_scale else 32}"):
            recipes[f"{name}_short"] = partial(_changed, shortened, recipes[name])
            recipes[f"{name}_end"] = partial(_changed, full_length, recipes[name])
    for size in ("b32", "b16"):
        for dataset in DATASETS:
            for name in (f"clip_{size}", f"siglip_{size}", f"llip_{size}_k32"):
                recipes[f"{name}_{dataset}"] = partial(_changed, partial(academic, dataset=dataset), recipes[name])
    return recipes


def _changed(change: Callable[[TrainingConfig], TrainingConfig], make: Callable[[], TrainingConfig]) -> TrainingConfig:
    return change(make())


RECIPES = _register()


def recipe(name: str) -> TrainingConfig:
    """The configuration of a recipe. Raises ValueError for an unknown name, with those that come near it."""
    if name not in RECIPES:
        near = difflib.get_close_matches(name, RECIPES, n=3) or sorted(RECIPES)[:3]
        raise ValueError(f"there is no recipe {name!r}; did you mean {', '.join(near)}?")
    return RECIPES[name]()


def load(source: str | os.PathLike[str]) -> TrainingConfig:
    """A configuration by recipe name, `module:function`, TOML file or run folder.

    A TOML file names a `recipe`, any of these, and the settings it changes; or it holds a whole configuration, as
    `--print-config` writes it. A run's folder gives the run's own configuration.
    Raises ValueError for what is none of them, naming the file or the field.
    """
    source = os.fspath(source)
    if source in RECIPES:
        return recipe(source)
    if source.endswith(".toml"):
        return _from_file(source)
    if "://" not in source and not Path(source).exists() and source.count(":") == 1:
        return _from_function(*source.split(":"))
    if storage.exists(uri := storage.join(source, RUN_CONFIG)):
        return from_dict(TrainingConfig, storage.read_json(uri)["training"])
    if "/" in source:
        raise ValueError(f"{source} is neither a run's folder (it has no {RUN_CONFIG}) nor a .toml file")
    return recipe(source)


def _from_file(uri: str) -> TrainingConfig:
    if not storage.exists(uri):
        raise ValueError(f"there is no file {uri}")
    try:
        values = tomllib.loads(storage.read_bytes(uri).decode())
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{uri} is not TOML: {error}") from error
    base = values.pop("recipe", None)
    try:
        if base is None:
            return from_dict(TrainingConfig, values)
        beside = base.endswith(".toml") and storage.absolute(base) != base
        return override(load(storage.beside(uri, base) if beside else base), flattened(values))
    except ValueError as error:
        raise ValueError(f"{uri}: {error}") from error


def _from_function(module: str, function: str) -> TrainingConfig:
    if "" not in sys.path:  # a script's path starts with the script's own folder
        sys.path.insert(0, "")
    try:
        config = getattr(importlib.import_module(module), function)()
    except (ImportError, AttributeError) as error:
        raise ValueError(f"recipe {module}:{function}: {error}") from error
    if not isinstance(config, TrainingConfig):
        raise ValueError(f"recipe {module}:{function} returned a {type(config).__name__}, not a TrainingConfig")
    return config
