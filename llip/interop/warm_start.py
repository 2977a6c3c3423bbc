"""Starting a model from the weights of another one with the same towers: CLIP for any head, or the same head."""

from dataclasses import asdict, replace
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from llip.config import NORM_EPSILON, ModelConfig
from llip.contrastive import ContrastiveModel
from llip.fields import differences

TOKEN_NOISE = 0.1
"""Size of what tells the tokens apart at first, relative to the class token that all of them start from."""


class Start(NamedTuple):
    """Parameters that `init_from` could not simply copy."""

    seeded: list[str]
    """Made from parameters of the other model, with another shape or role."""
    fresh: list[str]
    """Without a counterpart there: as the new model initialised them."""


@torch.no_grad()
def init_from(model: ContrastiveModel, source: ContrastiveModel) -> Start:
    """Give a new model the weights of a CLIP model, or of one with its own head; the result tells what is new.

    From CLIP, the first token is its class token and the others are noisy copies of it, all at its position. Every
    value projection is CLIP's projection and W_O the identity, so that whatever the mixing weights are, the new model's
    features are nearly CLIP's. Positions of patches are resized bicubically to another number of patches; a shorter
    context keeps the first positions, a longer one repeats the last. Raises ValueError where the towers differ
    otherwise, naming the fields.
    """
    _refuse_other_models(model.config, source.config)
    known, seeds = dict(source.named_parameters()), _seeds(model, source)
    start = Start([], [])
    for name, parameter in model.named_parameters():
        if name in seeds:
            parameter.copy_(seeds[name])
            start.seeded.append(name)
        elif name in known:
            parameter.copy_(known[name])
        else:
            start.fresh.append(name)
    return start


def _refuse_other_models(config: ModelConfig, source: ModelConfig) -> None:
    from_clip = source.head.kind == "class_token"
    if not from_clip and source.head.kind != config.head.kind:
        raise ValueError(
            f"a model with a {config.head.kind} head starts from one with a class_token or a {config.head.kind} head, "
            f"not from a {source.head.kind} head"
        )
    if lines := differences(_fixed(source, config, from_clip), _fixed(config, config, from_clip)):
        raise ValueError(f"the weights are of another model than the new one (weights → new): {'; '.join(lines)}")


def _fixed(config: ModelConfig, new: ModelConfig, from_clip: bool) -> dict[str, Any]:
    """Settings that have to be equal. Initialisation and what a start can adapt are left out."""
    vision = replace(config.vision, patch_dropout=0.0, position_std=None, norm_epsilon=NORM_EPSILON)
    text = replace(config.text, context_length=new.text.context_length, norm_epsilon=NORM_EPSILON)
    fields = {"embed_dim": config.embed_dim, "activation": config.activation, "text": asdict(text)}
    if from_clip:
        fields |= {"text": asdict(replace(text, tokens=1))}
        vision = replace(vision, tokens=1)
    else:
        fields |= {"head": asdict(config.head)}
    of_patches = new.head.patch_tokens and not new.head.shared_projections
    if from_clip or not of_patches:  # else every patch has projections of its own
        fields |= {"vision": {key: value for key, value in asdict(vision).items() if key != "image_size"}}
    else:
        fields |= {"vision": asdict(vision)}
    return fields


def _seeds(model: ContrastiveModel, source: ContrastiveModel) -> dict[str, Tensor]:
    """Values, by name, of the parameters that are made from those of the other model."""
    seeds = {}
    tokens, context = model.config.vision.tokens, model.config.text.context_length
    theirs = source.config.vision.tokens
    token_position_KW, patch_position_PW = source.vision.position.split((theirs, source.config.vision.patches))
    if tokens > theirs:
        noise_KW = torch.randn_like(model.vision.tokens) * (TOKEN_NOISE * source.vision.tokens.square().mean().sqrt())
        noise_KW[0] = 0
        seeds["vision.tokens"] = source.vision.tokens + noise_KW
        token_position_KW = token_position_KW.expand(tokens, -1)
    if tokens > theirs or model.config.vision.patches != source.config.vision.patches:
        patch_position_PW = _resized(patch_position_PW, model.config.vision.patches)
        seeds["vision.position"] = torch.cat([token_position_KW, patch_position_PW])
    if context != (before := source.config.text.context_length):
        longer_LW = source.text.position[-1:].expand(max(0, context - before), -1)
        seeds["text.position"] = torch.cat([source.text.position[:context], longer_LW])
    if model.config.head.kind == source.config.head.kind:
        return seeds
    known = dict(source.named_parameters())
    for name, parameter in model.head.named_parameters():
        if name.endswith((".value_proj", ".target_proj")):
            side = name.partition(".")[0]
            seeds[f"head.{name}"] = known[f"head.{side}.proj"].expand_as(parameter)
        elif name == "global_image.proj":
            seeds["head.global_image.proj"] = known["head.image.proj"]
        elif name == "out_proj":
            seeds["head.out_proj"] = torch.eye(len(parameter), device=parameter.device)
    return seeds


def _resized(position_PW: Tensor, patches: int) -> Tensor:
    """Positions of a square of patches, for a square of another number of them."""
    side = round(len(position_PW) ** 0.5)
    grid_1WSS = position_PW.T.unflatten(1, (side, side))[None]
    size = (round(patches**0.5),) * 2
    resized_1WSS = F.interpolate(grid_1WSS, size, mode="bicubic", antialias=True, align_corners=False)
    return resized_1WSS[0].flatten(1).T
