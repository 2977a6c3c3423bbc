"""Starting a model from the weights of a CLIP model with the same towers."""

from dataclasses import asdict, replace
from typing import NamedTuple

import torch
from torch import Tensor

from llip.config import ModelConfig, differences
from llip.contrastive import ContrastiveModel

TOKEN_NOISE = 0.1
"""Size of what tells the tokens apart at first, relative to the class token that all of them start from."""


class Start(NamedTuple):
    """Parameters that `init_from_clip` could not simply copy."""

    seeded: list[str]
    """Made from parameters of the CLIP model, with another shape or role."""
    fresh: list[str]
    """Without a counterpart there: as the new model initialised them."""


@torch.no_grad()
def init_from_clip(model: ContrastiveModel, clip: ContrastiveModel) -> Start:
    """Give a new model of any head the weights of a CLIP model; the result tells which parameters are new.

    The first token is CLIP's class token and the others are noisy copies of it, all at its position. Every value
    projection is CLIP's projection and W_O the identity, so that whatever the mixing weights are, the new model's
    features are nearly CLIP's. A shorter context keeps the first positions. Raises ValueError where the towers differ,
    naming the fields.
    """
    _refuse_other_towers(model.config, clip.config)
    source, seeds = dict(clip.named_parameters()), _seeds(model, clip)
    start = Start([], [])
    for name, parameter in model.named_parameters():
        if name in seeds:
            parameter.copy_(seeds[name])
            start.seeded.append(name)
        elif name in source:
            parameter.copy_(source[name])
        else:
            start.fresh.append(name)
    return start


def _refuse_other_towers(config: ModelConfig, clip: ModelConfig) -> None:
    if clip.head.kind != "class_token":
        raise ValueError(f"a model with a {clip.head.kind} head is no CLIP model; its head has to be class_token")
    vision = replace(clip.vision, tokens=config.vision.tokens, patch_dropout=config.vision.patch_dropout)
    context = min(config.text.context_length, clip.text.context_length)
    text = replace(clip.text, tokens=config.text.tokens, context_length=context)
    lines = differences(
        {
            "embed_dim": clip.embed_dim,
            "activation": clip.activation,
            "vision": asdict(vision),
            "text": asdict(text),
        },
        {
            "embed_dim": config.embed_dim,
            "activation": config.activation,
            "vision": asdict(config.vision),
            "text": asdict(config.text),
        },
    )
    if lines:
        raise ValueError(f"the CLIP model's towers are not those of the new model (CLIP → new): {'; '.join(lines)}")


def _seeds(model: ContrastiveModel, clip: ContrastiveModel) -> dict[str, Tensor]:
    """Values, by name, of the parameters that are made from those of the CLIP model."""
    seeds = {}
    tokens, context = model.config.vision.tokens, model.config.text.context_length
    if tokens > 1:
        class_position_1W, patch_position_PW = clip.vision.position.split((1, clip.config.vision.patches))
        noise_KW = torch.randn_like(model.vision.tokens) * (TOKEN_NOISE * clip.vision.tokens.square().mean().sqrt())
        noise_KW[0] = 0
        seeds["vision.tokens"] = clip.vision.tokens + noise_KW
        seeds["vision.position"] = torch.cat([class_position_1W.expand(tokens, -1), patch_position_PW])
    if context < clip.config.text.context_length:
        seeds["text.position"] = clip.text.position[:context]
    source = dict(clip.named_parameters())
    for name, parameter in model.head.named_parameters():
        if name.endswith((".value_proj", ".target_proj")):
            side = name.partition(".")[0]
            seeds[f"head.{name}"] = source[f"head.{side}.proj"].expand_as(parameter)
        elif name == "out_proj":
            seeds["head.out_proj"] = torch.eye(len(parameter), device=parameter.device)
    return seeds
