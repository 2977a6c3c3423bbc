"""`GramTiles` in five Triton kernels, for GPUs: of [rows, columns, M·K] two tensors in bf16, and nothing else.

A loss adds one factor to the gradient of a pair, `ṅ = dL/ds / ρ`. So the kernels that score a tile leave its
rounded weights `D = a - 1/K` and the slopes of its logits but for that factor, `a (x - Σ a x)` with
`x = w - r (GD + b)`. The loss sees the scores. The kernels that follow it are products of these two, scaled by ṅ where
they are read: nothing is made again. `triton_costs.work` counts what they do.

Axes: as in `tiles`, but X = M·K.
"""

import functools
import logging
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from llip import devices
from llip.pairs.fused_tiles import FusedGramTiles, score_slopes
from llip.pairs.tiles import SMALLEST_SQUARE
from llip.pairs.triton_costs import blocks

logger = logging.getLogger(__name__)

MOST_TOKENS = 512
"""Tokens of a head whose logits with a few columns a program can hold."""


@functools.cache
def runs(device: torch.device, precision: torch.dtype, heads: int, tokens: int, width: int, split: bool) -> bool:
    """Whether these kernels take mixtures of some size on a device; where they do not, one warning says why.

    A GPU tries them out. Operands of more than bf16 have faster products elsewhere.
    """
    if tokens > MOST_TOKENS:
        logger.warning("pair scores run without Triton: %d tokens are more than %d", tokens, MOST_TOKENS)
        return False
    if device.type != "cuda" or devices.simulated():
        return True
    if precision != torch.bfloat16:
        return False
    try:
        with torch.device(device):
            key_BMKE, gram_BXX = torch.zeros(1, heads, tokens, width), torch.zeros(1, *2 * [heads * tokens + 1])
            operands = (key_BMKE, key_BMKE, gram_BXX)
            tiles = TritonGramTiles(operands, temperature=1.0, precision=precision, gradients=True, split=split)
            message_JW = torch.zeros(16, 2 * heads * width)
            tiles.open(slice(0, 1))
            tiles.backward(tiles.scores(message_JW), message_JW)
            tiles.close()
            torch.cuda.synchronize(device)
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # of Triton's compiler, of the driver's, or of the launch
        logger.warning("pair scores run without Triton, as its kernels failed on %s: %s", device, error)
        return False
    return True


@torch.library.custom_op(
    "llip::score_mixtures",
    mutates_args=("weight_IXJ", "slope_IXJ", "score_IJ", "inverse_IJ", "clamped_IJ"),
)
def score_mixtures(
    weight_IXJ: Tensor,
    slope_IXJ: Tensor | None,
    score_IJ: Tensor,
    inverse_IJ: Tensor,
    clamped_IJ: Tensor,
    key_MNE: Tensor,
    value_MNE: Tensor,
    message_JW: Tensor,
    grams_IXX: list[Tensor],
    edge_XI: Tensor,
    corner_I: Tensor,
    temperature: float,
) -> None:
    """Fill in weights, slopes of logits (where asked for), cosines, inverse norms and clamped pairs of a tile."""
    import triton
    import triton.language as tl

    from llip.pairs import kernels

    (rows, _, columns), (heads, _, width) = weight_IXJ.shape, key_MNE.shape
    tokens = key_MNE.shape[1] // rows
    own = blocks(heads, tokens, width)
    numerator_IJ = torch.empty_like(score_IJ)
    sizes = {
        "HEADS": heads,
        "TOKENS": tokens,
        "WIDTH": width,
        "PADDED": own.tokens,
        "STEP": own.width_step,
        "WIDE": tl.float64 if score_IJ.dtype == torch.float64 else tl.float32,
        "num_warps": 8,
    }
    kernels.mix[(triton.cdiv(rows, own.mix_rows) * triton.cdiv(columns, own.mix_columns),)](
        weight_IXJ,
        numerator_IJ,
        key_MNE,
        value_MNE,
        message_JW,
        rows,
        columns,
        message_JW.stride(0),
        TEMPERATURE=temperature,
        ROWS=own.mix_rows,
        COLUMNS=own.mix_columns,
        **sizes,
    )
    programs = min(_programs(weight_IXJ.device), rows * triton.cdiv(columns, own.score_columns))
    waiting = heads * tokens * own.score_columns if slope_IXJ is not None else 0
    kernels.score[(programs,)](
        score_IJ,
        inverse_IJ,
        clamped_IJ,
        weight_IXJ if slope_IXJ is None else slope_IXJ,
        weight_IXJ,
        numerator_IJ,
        value_MNE,
        message_JW,
        grams_IXX[0],
        grams_IXX[-1],
        edge_XI,
        corner_I,
        score_IJ.new_empty(programs * waiting),
        rows,
        columns,
        message_JW.stride(0),
        SMALLEST=SMALLEST_SQUARE,
        BLOCK=own.gram,
        INNER=own.gram_inner,
        COLUMNS=own.score_columns,
        SPLIT=len(grams_IXX) > 1,
        GRADIENTS=slope_IXJ is not None,
        **sizes,
    )


@functools.cache
def _programs(device: torch.device) -> int:
    """Programs that work side by side, each with some memory of its own: one a multiprocessor has room for."""
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 3


@torch.library.custom_op(
    "llip::mixture_gradients",
    mutates_args=(
        "key_gradient_MNE",
        "value_gradient_MNE",
        "gram_gradient_IXX",
        "edge_gradient_XI",
        "message_gradient_JW",
    ),
)
def mixture_gradients(
    key_gradient_MNE: Tensor,
    value_gradient_MNE: Tensor,
    gram_gradient_IXX: Tensor,
    edge_gradient_XI: Tensor,
    message_gradient_JW: Tensor,
    weight_IXJ: Tensor,
    slope_IXJ: Tensor,
    factor_IJ: Tensor,
    ratio_IJ: Tensor,
    key_MNE: Tensor,
    value_MNE: Tensor,
    message_JW: Tensor,
    temperature: float,
) -> None:
    """Add the gradients of a tile, given the factors ṅ and the ratios r of its pairs."""
    import triton
    import triton.language as tl

    from llip.pairs import kernels

    (rows, size, columns), (heads, _, width) = weight_IXJ.shape, key_MNE.shape
    tokens = size // heads
    own = blocks(heads, tokens, width)
    wide = tl.float64 if factor_IJ.dtype == torch.float64 else tl.float32
    sizes = {
        "TEMPERATURE": temperature,
        "HEADS": heads,
        "TOKENS": tokens,
        "WIDTH": width,
        "WIDTH_PADDED": own.width,
        "ROWS": own.rows,
        "WIDE": wide,
        "num_warps": 8,
    }
    kernels.rows_backward[(triton.cdiv(tokens * rows, own.rows), heads)](
        key_gradient_MNE,
        value_gradient_MNE,
        weight_IXJ,
        slope_IXJ,
        factor_IJ,
        message_JW,
        rows,
        columns,
        message_JW.stride(0),
        COLUMNS=own.inner,
        **sizes,
    )
    kernels.columns_backward[(triton.cdiv(columns, own.columns), heads)](
        message_gradient_JW,
        weight_IXJ,
        slope_IXJ,
        factor_IJ,
        key_MNE,
        value_MNE,
        rows,
        columns,
        message_gradient_JW.stride(0),
        COLUMNS=own.columns,
        **sizes,
    )
    along = triton.cdiv(size, own.gram)
    kernels.gram_backward[(rows, along, along)](
        gram_gradient_IXX,
        edge_gradient_XI,
        weight_IXJ,
        factor_IJ,
        ratio_IJ,
        rows,
        columns,
        SIZE=size,
        BLOCK=own.gram,
        COLUMNS=own.columns,
        WIDE=wide,
        num_warps=8,
    )


class TritonGramTiles(FusedGramTiles):
    """`GramTiles` in Triton kernels. A Gram matrix is symmetric: blocks above its diagonal get the whole gradient."""

    def __init__(self, operands: Iterable[Tensor], **settings: Any) -> None:
        super().__init__(operands, **settings)
        self.elements = max(1, self._size // 4)  # two tensors of bf16, where other forms have six, some of fp32

    def open(self, rows: slice) -> None:
        super().open(rows)
        self._edge_XI = self._edge_MKI1.flatten(0, 1)[..., 0]
        self._corner_I = self._corner_I1[:, 0].contiguous()
        self._grams_IXX = [part_IXX.contiguous() for part_IXX in self._grams_IXX]

    def scores(self, message_JW: Tensor) -> Tensor:
        rows, columns = len(self._corner_I), len(message_JW)
        self._message_JW = message_JW.to(self._precision)
        self._weight_IXJ = self._new(rows, self._size, columns, dtype=self._precision)
        self._slope_IXJ = torch.empty_like(self._weight_IXJ) if self.gradients else None
        score_IJ, inverse_IJ = self._new(rows, columns), self._new(rows, columns)
        clamped_IJ = self._new(rows, columns, dtype=torch.bool)
        score_mixtures(
            self._weight_IXJ,
            self._slope_IXJ,
            score_IJ,
            inverse_IJ,
            clamped_IJ,
            self._key_MNE,
            self._value_MNE,
            self._message_JW,
            self._grams_IXX,
            self._edge_XI,
            self._corner_I,
            self._temperature,
        )
        self.clamped += clamped_IJ.sum()
        self._pairs_IJ = (score_IJ, inverse_IJ, clamped_IJ)
        return score_IJ

    def backward(self, gradient_IJ: Tensor, message_gradient_JW: Tensor) -> None:
        factor_IJ, ratio_IJ = score_slopes(gradient_IJ, *self._pairs_IJ)
        self._corner_gradient_I += (factor_IJ * ratio_IJ).sum(dim=1)
        assert self._slope_IXJ is not None, "tiles without gradients"
        mixture_gradients(
            self._key_gradient_MNE,
            self._value_gradient_MNE,
            self._gram_gradient_IXX,
            self._edge_gradient_XI,
            message_gradient_JW,
            self._weight_IXJ,
            self._slope_IXJ,
            factor_IJ,
            ratio_IJ,
            self._key_MNE,
            self._value_MNE,
            self._message_JW,
            self._temperature,
        )
