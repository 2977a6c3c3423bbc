"""Tiles of the matrix of pair scores: some rows against some columns, and the gradients that follow from the scores'.

Rows are the side that is mixed (images, for Llip), columns the side whose queries mix it. Three ways of computing the
same cosines share one protocol (`Tiles`):

* `CosineTiles`: pooled rows and columns, one product.
* `GramTiles`: mixtures, through the Gram matrix of each row's projected values. With `D = a - 1/K` and values centred
  over the tokens there, the squared norm is quadratic in `(D, 1)`: no feature is formed.
* `OutputGramTiles`: mixtures, through `W_O W_Oᵀ`: the mixture `c` is formed but not its projection,
  as `|c W_O|² = c W_O W_Oᵀ cᵀ`.

The latter two have a twin for GPUs in `fused_tiles`.

Centring is exact, because the weights of a head sum to 1, and is what keeps products of bf16 accurate: the deviation
from the mean is rounded, not the mean. Products take operands in the precision of the features and are summed,
as everything else, in fp32 (fp64 for fp64 features).

Axes: I rows of a tile · J columns of a tile · M heads · K tokens · E width of a head · D = M·E · X = M·K + 1 ·
N = K·I · W width of a column's message. Columns come last, so that all heavy work is batched products of long rows.
"""

from collections.abc import Iterable
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from llip import devices

SMALLEST_SQUARE = 1e-24
"""Squared norms are at least this, as in `torch.nn.functional.normalize`."""


class Tiles(Protocol):
    """Scores of the tiles of one matrix: `open` some rows, `scores` and `backward` tile by tile, `close` the rows."""

    elements: int
    """Numbers that a pair takes in a buffer."""
    gradients: tuple[Tensor, ...]
    """Gradients of the row operands, in order; complete for the rows that are closed. Empty without gradients."""
    clamped: Tensor
    """Pairs so far whose cosine came out beyond ±1 and was clamped; they get no gradient."""

    def open(self, rows: slice) -> None: ...

    def scores(self, message_JW: Tensor) -> Tensor:
        """Cosines [I, J] of the open rows with these columns."""
        ...

    def backward(self, gradient_IJ: Tensor, message_gradient_JW: Tensor) -> None:
        """Add the gradients of the tile scored last, given those of its scores, to the rows' and to the columns'."""
        ...

    def close(self) -> None: ...


def product(out: Tensor, left: Tensor, right: Tensor, *, add: bool = False, scale: float = 1.0) -> None:
    """`out = left @ right · scale` (or `+=`), batched, in place; operands may be of lower precision than `out`."""
    if left.dtype == out.dtype:
        out.baddbmm_(left, right, beta=int(add), alpha=scale)
    elif out.is_cuda or devices.of(out.device).fused:
        torch.ops.llip.wide_product(out, left, right, add, scale)
    else:
        _wide_product_on_cpu(out, left, right, add, scale)


# An operator of its own: PyTorch's with `out_dtype` and `out` can be traced by no compiler.
_library = torch.library.Library("llip", "DEF")
_library.define("wide_product(Tensor(a!) out, Tensor left, Tensor right, bool add, float scale) -> ()")


@torch.library.impl(_library, "wide_product", "CUDA")
def _wide_product(out: Tensor, left: Tensor, right: Tensor, add: bool, scale: float) -> None:
    torch.baddbmm(out, left, right, out_dtype=out.dtype, beta=int(add), alpha=scale, out=out)


@torch.library.impl(_library, "wide_product", "CPU")
def _wide_product_on_cpu(out: Tensor, left: Tensor, right: Tensor, add: bool, scale: float) -> None:
    out.baddbmm_(left.to(out.dtype), right.to(out.dtype), beta=int(add), alpha=scale)  # the same sums


@torch.library.register_fake("llip::wide_product", lib=_library)  # type: ignore[untyped-decorator]
def _(out: Tensor, left: Tensor, right: Tensor, add: bool, scale: float) -> None:
    pass


class Cosines(NamedTuple):
    """Scores of a tile and what their gradient needs."""

    score_IJ: Tensor
    inverse_norm_IJ: Tensor
    clamped_IJ: Tensor


def cosines(numerator_IJ: Tensor, square_IJ: Tensor) -> Cosines:
    """`n / ρ` with `ρ² ≥ n²` (Cauchy-Schwarz), which rounding may break: then the score is clamped to ±1."""
    bound_IJ = numerator_IJ.square()
    clamped_IJ = square_IJ < bound_IJ
    inverse_norm_IJ = torch.maximum(square_IJ, bound_IJ).clamp_(min=SMALLEST_SQUARE).rsqrt_()
    return Cosines((numerator_IJ * inverse_norm_IJ).clamp_(-1, 1), inverse_norm_IJ, clamped_IJ)


def centred_softmax_(logit_MKN: Tensor) -> Tensor:
    """Softmax over K minus its mean 1/K, in place."""
    logit_MKN -= logit_MKN.amax(dim=1, keepdim=True)
    inverse_M1N = logit_MKN.exp_().sum(dim=1, keepdim=True).reciprocal_()
    mean = logit_MKN.new_full((), -1 / logit_MKN.shape[1])
    return torch.addcmul(mean, logit_MKN, inverse_M1N, out=logit_MKN)


class Workspace:
    """Buffers that are used again for every tile, so that none is allocated in the loop."""

    def __init__(self, like: Tensor) -> None:
        self._like = like
        self._buffers: dict[str, Tensor] = {}

    def get(self, name: str, *shape: int) -> Tensor:
        size = torch.Size(shape).numel()
        if name not in self._buffers or self._buffers[name].numel() < size:
            self._buffers[name] = self._like.new_empty(size)
        return self._buffers[name][:size].view(shape)


class CosineRows(NamedTuple):
    """Unit vectors."""

    unit_BD: Tensor


class CosineTiles:
    """Pooled rows; a column's message is its unit vector."""

    elements = 1

    def __init__(self, operands: Iterable[Tensor], *, precision: torch.dtype, gradients: bool) -> None:
        rows = CosineRows(*operands)
        self._unit_BD = rows.unit_BD
        self._precision = precision
        self.gradients: tuple[Tensor, ...] = (torch.zeros_like(rows.unit_BD),) if gradients else ()
        self.clamped = torch.zeros((), dtype=torch.int64, device=rows.unit_BD.device)

    def open(self, rows: slice) -> None:
        self._rows = rows
        self._unit_ID = self._unit_BD[rows].to(self._precision)

    def scores(self, message_JW: Tensor) -> Tensor:
        self._message_JW = message_JW.to(self._precision)
        score_IJ = self._unit_BD.new_empty(len(self._unit_ID), len(message_JW))
        product(score_IJ[None], self._unit_ID[None], self._message_JW.T[None])
        return score_IJ

    def backward(self, gradient_IJ: Tensor, message_gradient_JW: Tensor) -> None:
        gradient_IJ = gradient_IJ.to(self._precision)
        row_gradient_ID = self.gradients[0][self._rows]
        product(row_gradient_ID[None], gradient_IJ[None], self._message_JW[None], add=True)
        product(message_gradient_JW[None], gradient_IJ.T[None], self._unit_ID[None], add=True)

    def close(self) -> None:
        pass
