"""Size and cost of a model: parameters, forward FLOPs of one image and of one caption, and FLOPs of a training step.

FLOPs of the towers are counted on the model as it runs (two for a multiplication and its addition), not derived from a
formula. So they leave out what the towers save: padding, and positions of the last blocks that nobody reads. FLOPs of
pair scores come from a formula, since kernels compute them in several forms.
"""

from dataclasses import dataclass, replace
from functools import cache

import torch
from torch.utils.flop_counter import FlopCounterMode

from llip.config import HeadConfig, ModelConfig, TrainingConfig
from llip.contrastive import ContrastiveModel
from llip.model.towers import TextTransformer, VisionTransformer


@dataclass(frozen=True, kw_only=True)
class ModelSize:
    """Parameters and FLOPs of one model."""

    vision_parameters: int
    """Parameters of the image tower, without its projections."""
    text_parameters: int
    head_parameters: int
    """Parameters of the projections of both sides, and of W_O."""
    image_flops: int
    """Forward, of one image, projections included."""
    caption_flops: int
    """Forward, of one caption, projections included."""
    word_parameters: int
    """Parameters of the prediction of words, which only training has (`llip.model.words`)."""
    word_flops: int
    """Forward, of one image in training: that prediction, and the last block for the patches that it reads."""

    @property
    def parameters(self) -> int:
        """Without scale and bias."""
        return self.vision_parameters + self.text_parameters + self.head_parameters + self.word_parameters


def summarise(config: ModelConfig, caption_tokens: int) -> ModelSize:
    """The summary of a model for captions of `caption_tokens` tokens, start and end included. Allocates no weights.

    Counted with two blocks a tower: every block but the last costs what the first does.
    """
    vision, image_flops = _image(_shallow(config), config.vision.layers)
    word_parameters, word_flops = _words(_shallow(config))
    text, caption_flops = _caption(_shallow(config), config.text.layers, caption_tokens)
    return ModelSize(
        vision_parameters=vision,
        text_parameters=text,
        head_parameters=_parameters(_on_meta(_shallow(config)).head),
        image_flops=image_flops,
        caption_flops=caption_flops,
        word_parameters=word_parameters,
        word_flops=word_flops,
    )


@dataclass(frozen=True, kw_only=True)
class StepFlops:
    """Model FLOPs of one training step over all ranks, forward and backward, which takes twice the forward's."""

    towers: float
    """FLOPs of both towers and the projections."""
    pairs: float
    """FLOPs of the scores of all pairs."""

    @property
    def total(self) -> float:
        return self.towers + self.pairs


def step_flops(config: TrainingConfig, caption_tokens: int) -> StepFlops:
    """FLOPs of a step with captions of `caption_tokens` tokens, start and end included.

    Recomputation that saves memory does not count, nor does the optimizer.
    """
    size, images = summarise(config.model, caption_tokens), config.data.batch_size
    captions = config.data.captions_per_image
    return StepFlops(
        towers=3.0 * images * (size.image_flops + size.word_flops + captions * size.caption_flops),
        pairs=3.0 * captions * images**2 * pair_forward_flops(config.model),
    )


def pair_forward_flops(model: ModelConfig) -> float:
    """Forward FLOPs of one (image, caption) pair.

    A cosine of two vectors of width d costs 2d. A mixture of K tokens by M heads costs 4Kd for weights and values, and
    its norm the cheaper of the Gram form over tokens, (MK)²(1 + 1/M), and the form c·(W_Oᵀ W_O)·c, 2d².
    """
    d, k, m = model.embed_dim, model.mixture_tokens, model.head.heads
    if model.head.kind not in ("text_query", "image_query"):
        return 2.0 * d
    return 4.0 * k * d + min((m * k) ** 2 * (1 + 1 / m), 2.0 * d**2)


def _shallow(config: ModelConfig) -> ModelConfig:
    """The model with at most two blocks a tower, and without what counts nothing."""
    return replace(
        config,
        vision=replace(config.vision, layers=min(2, config.vision.layers), position_std=None),
        text=replace(config.text, layers=min(2, config.text.layers)),
        init_logit_scale=1.0,
        init_logit_bias=None,
    )


@cache
def _on_meta(config: ModelConfig) -> ContrastiveModel:
    with torch.device("meta"):
        return ContrastiveModel(config)


def _parameters(module: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def _extended(tower: VisionTransformer | TextTransformer, layers: int, counter: FlopCounterMode) -> tuple[int, int]:
    """Parameters of the tower and FLOPs counted of it, if it had `layers` blocks and not two."""
    more, (first, *_) = layers - len(tower.transformer.blocks), tower.transformer.blocks
    flops = counter.get_flop_counts()[f"{type(tower).__name__}.transformer.blocks.0"]
    return (
        _parameters(tower) + more * _parameters(first),
        counter.get_total_flops() + more * sum(flops.values()),
    )


@cache
def _image(config: ModelConfig, layers: int) -> tuple[int, int]:
    """Parameters of the image tower, and FLOPs of an image."""
    model = _on_meta(config)
    side = config.vision.image_size
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model.encode_image(torch.empty(1, 3, side, side, device="meta"))
    return _extended(model.vision, layers, counter)


@cache
def _words(config: ModelConfig) -> tuple[int, int]:
    """Parameters of the prediction of words, and FLOPs that it adds to an image."""
    model = _on_meta(config)
    if model.words is None:
        return 0, 0
    vision, flops = config.vision, []
    for kept in (None, vision.tokens + vision.patches):
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            states_BNW = model.vision(torch.empty(1, 3, vision.image_size, vision.image_size, device="meta"), kept)
            if kept is not None:
                model.words.linear(states_BNW.mean(dim=1))
        flops.append(counter.get_total_flops())
    return _parameters(model.words.linear), flops[1] - flops[0]


def _caption(config: ModelConfig, layers: int, tokens: int) -> tuple[int, int]:
    """Parameters of the text tower, and FLOPs of a caption, whatever the image tower is."""
    vision = replace(config.vision, layers=1, tokens=1, patch_dropout=0.0)
    kind = config.head.kind if config.head.kind in ("text_query", "image_query") else "class_token"
    head = HeadConfig(kind=kind, norm=config.head.norm)
    return _counted_caption(replace(config, vision=vision, head=head), layers, tokens)


@cache
def _counted_caption(config: ModelConfig, layers: int, tokens: int) -> tuple[int, int]:
    model = _on_meta(config)
    token_ids_TL = torch.zeros(1, tokens, dtype=torch.long)
    token_ids_TL[:, -1] = config.text.vocabulary - 1
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model.encode_text(token_ids_TL)
    return _extended(model.text, layers, counter)
