"""Checkpoints of Llip's public release (facebookresearch/Llip)."""

import io
import os
from dataclasses import replace

import torch
from torch import Tensor

from llip import storage
from llip.config import NORM_EPSILON, Activation, HeadConfig, PreprocessConfig
from llip.contrastive import ContrastiveModel
from llip.interop.names import RELEASE_NAMES, translate
from llip.interop.tensor_files import read_tensors
from llip.interop.towers import assemble, check_tokens, inference_state, read_config

TEMPERATURES = {768: 5.0, 1024: 1.0, 1280: 5.0, 1664: 5.0}
"""Mixing temperature by the width of the vision tower: B, L, H and bigG (Llip, table 2)."""


def is_release(state: dict[str, Tensor]) -> bool:
    """Whether tensors are those of a model that mixes tokens, by name."""
    return "k_proj" in state and "v_proj" in state


def load_llip_release(
    path: str | os.PathLike[str],
    *,
    tensors: dict[str, Tensor] | None = None,
    num_heads: int = 8,
    temperature: float | None = None,
    activation: Activation = "quick_gelu",
    vision_head_width: int | None = None,
    text_head_width: int | None = None,
) -> ContrastiveModel:
    """A checkpoint of Llip's public release, local or remote.

    tensors: those of the file, where it was read before. The other arguments say what shapes cannot: 8 heads; the rest
    follows from the published size where it is not given.
    Raises ValueError for a file of another format, naming what does not fit, and for a size that is not published.
    """
    path = os.fspath(path)
    state = read_tensors(path) if tensors is None else tensors
    if "out_proj" in state:  # its name in older files
        state = {"pred.out_proj" if name == "out_proj" else name: tensor for name, tensor in state.items()}
    check_tokens(state, 2, "[K, width] of Llip's tokens", path)
    if temperature is None and (tokens := state.get("visual.class_embedding")) is not None:
        temperature = TEMPERATURES.get(tokens.shape[1])
        if temperature is None:
            raise ValueError(
                f"{path}: no published Llip has a vision tower of width {tokens.shape[1]}, and weights do not show "
                "their mixing temperature; say temperature=…, or name a recipe (--recipe on the command line)"
            )
    norm = "K_norm.weight" in state
    head = HeadConfig(heads=num_heads, temperature=temperature or 1.0, norm=norm, shared_projections=False)
    widths = {"vision_head_width": vision_head_width, "text_head_width": text_head_width}
    config = replace(read_config(state, head, path, **widths), activation=activation)
    return assemble(config, state, RELEASE_NAMES, path)


def export_llip_release(model: ContrastiveModel, path: str | os.PathLike[str]) -> None:
    """Write a Llip model as a checkpoint of the public release, a `.pt` file; `load_llip_release` reads it.

    That format has two projections for each token: shared ones are written once for each of them. It holds neither the
    temperature nor the widths of heads. Raises ValueError for what it cannot express: other heads, patches that are
    mixed, the exact GELU, another epsilon of norms, another preparation of images than OpenAI's.
    """
    config, head = model.config, model.config.head
    if head.kind != "text_query":
        raise ValueError(f"Llip's release has no {head.kind} head; only text_query models can be exported to it")
    for field, value, right in (
        ("head.patch_tokens", head.patch_tokens, False),
        ("activation", config.activation, "quick_gelu"),
        ("text.activation", config.text.activation or config.activation, "quick_gelu"),
        ("vision.norm_epsilon", config.vision.norm_epsilon, NORM_EPSILON),
        ("text.norm_epsilon", config.text.norm_epsilon, NORM_EPSILON),
        ("preprocessing", config.preprocessing, PreprocessConfig()),
    ):
        if value != right:
            raise ValueError(f"Llip's release cannot express {field} {value}")
    state = {translate(name, RELEASE_NAMES): tensor.detach().cpu() for name, tensor in inference_state(model).items()}
    if head.shared_projections:
        for name in ("k_proj", "v_proj"):
            state[name] = state[name].repeat(config.mixture_tokens, 1, 1)
    buffer = io.BytesIO()
    torch.save({"state_dict": state}, buffer)
    storage.write_bytes(os.fspath(path), buffer.getvalue())
