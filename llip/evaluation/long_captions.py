"""Captions longer than the trained context: positions stretched, no weight trained.

As Long-CLIP (Zhang et al., ECCV 2024, section 3.1) does before it trains on: the first twenty positions stay, since
most captions end there and these are well trained; those behind are interpolated linearly. A caption that ends within
the first twenty has the features that it had.

Axes: L positions · W width.
"""

from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from llip.contrastive import ContrastiveModel

KEPT = 20


def stretch_context(model: ContrastiveModel, length: int) -> None:
    """Make a model take captions of `length` tokens, in place. Raises ValueError for a length that is not above the
    trained one."""
    trained = model.config.text.context_length
    if length <= trained:
        raise ValueError(f"--context-length {length}: this model was trained with {trained} tokens; take more")
    text = replace(model.config.text, context_length=length)
    model.config = replace(model.config, text=text)
    model.text.config = text
    model.text.position = nn.Parameter(stretched(model.text.position.detach(), length))


def stretched(position_LW: Tensor, length: int, kept: int = KEPT) -> Tensor:
    """Positions [length, W]: the first `kept` as they are, the others from end to end."""
    kept = min(kept, len(position_LW) - 2)
    behind_1WL = position_LW[kept:].T[None].float()
    longer_1WL = F.interpolate(behind_1WL, length - kept, mode="linear", align_corners=True)
    return torch.cat([position_LW[:kept], longer_1WL[0].T.to(position_LW.dtype)])
