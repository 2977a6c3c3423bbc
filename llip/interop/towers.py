"""Models from tensors in the names of OpenAI's CLIP: what their shapes tell, and what has to be told."""

import math
import re

import torch
from torch import Tensor

from llip.config import HeadConfig, ModelConfig, TextConfig, VisionConfig
from llip.contrastive import ContrastiveModel
from llip.interop.names import translate
from llip.recipes.sizes import SIGLIP_INIT_BIAS

VISION_HEAD_WIDTHS = {384: 64, 512: 64, 768: 64, 896: 64, 1024: 64, 1280: 80, 1408: 88, 1664: 104, 1792: 112}
TEXT_HEAD_WIDTHS = {256: 64, 384: 64, 512: 64, 640: 64, 768: 64, 1024: 64, 1280: 64}
"""Width of an attention head by the width of the tower, as published: S, M, B, B-plus, L, H, g, bigG and e."""

OWN_NAME, OPTIMIZER_NAME = "vision.patch_embedding.weight", "exp_avg/"


def read_config(
    state: dict[str, Tensor],
    head: HeadConfig,
    path: str,
    *,
    vision_head_width: int | None = None,
    text_head_width: int | None = None,
) -> ModelConfig:
    """Configuration of the towers, from shapes. Widths of heads that are not given are those of the published sizes.

    Raises ValueError for other architectures, and for a width that is no published one's.
    """
    _require_clip(state, path)
    tokens, width = state["visual.class_embedding"].shape
    patch_size, patches = state["visual.conv1.weight"].shape[-1], len(state["visual.positional_embedding"]) - tokens
    if math.isqrt(max(patches, 0)) ** 2 != patches or patches < 1:
        raise ValueError(f"{path}: visual.positional_embedding is of {patches} patches; they have to form a square")
    vision_layers, vision_mlp = _depth(state, "visual.transformer", path)
    context_length, text_width = state["positional_embedding"].shape
    text_layers, text_mlp = _depth(state, "transformer", path)
    vision_head = vision_head_width or _head_width(VISION_HEAD_WIDTHS, width, "vision", path)
    text_head = text_head_width or _head_width(TEXT_HEAD_WIDTHS, text_width, "text", path)
    if text_width % text_head:
        raise ValueError(f"text_head_width {text_head} does not divide the width {text_width} of {path}'s text tower")
    return ModelConfig(
        embed_dim=state["text_projection"].shape[1],
        vision=VisionConfig(
            image_size=patch_size * math.isqrt(patches),
            patch_size=patch_size,
            width=width,
            layers=vision_layers,
            head_width=vision_head,
            mlp_width=None if vision_mlp == 4 * width else vision_mlp,
            tokens=tokens,
        ),
        text=TextConfig(
            context_length=context_length,
            vocabulary=len(state["token_embedding.weight"]),
            width=text_width,
            heads=text_width // text_head,
            layers=text_layers,
            mlp_width=None if text_mlp == 4 * text_width else text_mlp,
        ),
        head=head,
        init_logit_bias=SIGLIP_INIT_BIAS if "logit_bias" in state else None,
    )


def assemble(config: ModelConfig, state: dict[str, Tensor], names: dict[str, str], path: str) -> ContrastiveModel:
    """A model of these tensors, as float32. Raises ValueError unless they are exactly its parameters."""
    with torch.device("meta"):  # without drawing weights first
        model = ContrastiveModel(config)
    shapes = {name: tensor.shape for name, tensor in model.state_dict().items()}
    theirs = {name: translate(name, names) for name in shapes}
    if missing := sorted(set(theirs.values()) - state.keys()):
        raise ValueError(f"{path} lacks {', '.join(missing[:5])} of a {config.head.kind} model")
    if unknown := sorted(state.keys() - set(theirs.values())):
        raise ValueError(f"{path} holds {', '.join(unknown[:5])}, which a {config.head.kind} model does not have")
    tensors = {name: state[theirs[name]].float() for name in shapes}
    for name in ("logit_scale", "logit_bias"):
        if name in tensors and tensors[name].numel() == 1:  # some versions of open_clip write vectors of one number
            tensors[name] = tensors[name].reshape(())
    for name, tensor in tensors.items():
        if tensor.shape != shapes[name]:
            raise ValueError(f"{path}: {theirs[name]} has shape {list(tensor.shape)}, not {list(shapes[name])}")
    model.load_state_dict(tensors, assign=True)
    return model


def inference_state(model: ContrastiveModel) -> dict[str, Tensor]:
    """The tensors of a model but those that only its training uses."""
    return {name: tensor for name, tensor in model.state_dict().items() if not name.startswith("words.")}


def check_tokens(state: dict[str, Tensor], axes: int, expected: str, path: str) -> None:
    """Raises ValueError where the tokens before the patches have another number of axes."""
    tokens = state.get("visual.class_embedding")
    if tokens is not None and tokens.ndim != axes:
        raise ValueError(f"{path}: visual.class_embedding has shape {list(tokens.shape)}, not {expected}")


def _require_clip(state: dict[str, Tensor], path: str) -> None:
    if OWN_NAME in state:
        raise ValueError(
            f"{path} is in this project's own format: llip.load_model reads the folder that holds it and its model.json"
        )
    if any(name.startswith(OPTIMIZER_NAME) for name in state):
        raise ValueError(f"{path} holds the state of an optimizer; the weights are in model.safetensors beside it")
    vision = ["visual.class_embedding", "visual.positional_embedding", "visual.conv1.weight"]
    needed = [*vision, "positional_embedding", "token_embedding.weight", "text_projection"]
    if missing := [name for name in needed if name not in state]:
        names = ", ".join(sorted(state)[:5])
        raise ValueError(f"{path} is not CLIP with a vision transformer: it has no {missing[0]}, but {names}, …")
    for name, axes in (("positional_embedding", 2), ("text_projection", 2), ("visual.conv1.weight", 4)):
        if state[name].ndim != axes:
            raise ValueError(f"{path}: {name} has shape {list(state[name].shape)}, not one of {axes} axes")


def _head_width(known: dict[int, int], width: int, tower: str, path: str) -> int:
    if width not in known:
        raise ValueError(
            f"{path}: no published {tower} tower has the width {width}, and shapes do not show how wide its attention "
            f"heads are; say {tower}_head_width=… (--{tower}-head-width on the command line)"
        )
    return known[width]


def _depth(state: dict[str, Tensor], tower: str, path: str) -> tuple[int, int]:
    """Number of blocks of a tower, and the hidden width of their MLP."""
    found = [re.match(rf"{re.escape(tower)}\.resblocks\.(\d+)\.mlp\.c_fc\.bias", name) for name in state]
    blocks = {int(match[1]): match[0] for match in found if match}
    if not blocks:
        raise ValueError(f"{path} is not CLIP with two transformers: it has no {tower}.resblocks.0.mlp.c_fc.bias")
    return len(blocks), len(state[blocks[max(blocks)]])
