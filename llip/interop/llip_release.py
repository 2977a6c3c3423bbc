"""Checkpoints of Llip's public release (facebookresearch/Llip)."""

import os

from torch import Tensor

from llip.config import HeadConfig
from llip.contrastive import ContrastiveModel
from llip.interop.names import RELEASE_NAMES
from llip.interop.tensor_files import read_tensors
from llip.interop.towers import assemble, check_tokens, read_config

TEMPERATURES = {768: 5.0, 1024: 1.0, 1280: 5.0, 1664: 5.0}
"""Mixing temperature by the width of the vision tower: B, L, H and bigG (Llip, table 2)."""


def load_llip_release(
    path: str | os.PathLike[str],
    *,
    num_heads: int = 8,
    temperature: float | None = None,
    vision_head_width: int | None = None,
    text_head_width: int | None = None,
) -> ContrastiveModel:
    """A checkpoint of Llip's public release, local or remote.

    The keyword arguments are what shapes cannot tell: 8 heads, and what is not given is that of the published size.
    Raises ValueError for a file of another format, naming what does not fit, and for a size that is not published.
    """
    path = os.fspath(path)
    return from_tensors(
        read_tensors(path),
        path,
        num_heads=num_heads,
        temperature=temperature,
        vision_head_width=vision_head_width,
        text_head_width=text_head_width,
    )


def is_release(state: dict[str, Tensor]) -> bool:
    """Whether tensors are those of a model that mixes tokens, by name."""
    return "k_proj" in state and "v_proj" in state


def from_tensors(
    state: dict[str, Tensor],
    path: str,
    *,
    num_heads: int = 8,
    temperature: float | None = None,
    vision_head_width: int | None = None,
    text_head_width: int | None = None,
) -> ContrastiveModel:
    """`load_llip_release` of tensors that were read from `path`."""
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
    head = HeadConfig(heads=num_heads, temperature=temperature or 1.0, norm="K_norm.weight" in state)
    widths = {"vision_head_width": vision_head_width, "text_head_width": text_head_width}
    return assemble(read_config(state, head, path, **widths), state, RELEASE_NAMES, path)
