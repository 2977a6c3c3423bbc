"""All pairs of the global batch, tile by tile, and losses over them whose gradient is made in the forward pass.

As soon as the scores of a tile are known, so are its part of a sum over pairs and the gradient of that part. Both are
added up tile by tile and nothing of the number of pairs is kept. What is decided here is which side is rows and which
travels between ranks; what is summed is a `Loss` (see `losses`).

Axes: I rows of a tile · J columns of a tile · C captions of an image · B images of a rank · T columns of a rank ·
N columns of a block, by caption · W width of a message.
"""

from collections.abc import Callable, Iterator
from typing import Any, Literal, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd.function import once_differentiable

from llip.pairs import scoring
from llip.pairs.exchange import Block, Exchange
from llip.pairs.tiles import Tiles


class Tile(NamedTuple):
    """Where a tile of a block lies, and its scores."""

    rows: slice
    """Among all rows of this rank."""
    row_caption: int
    columns: slice
    """Among the columns of `column_caption`."""
    column_caption: int
    diagonal: int
    """Diagonal of the tile on which rows meet their own columns (outside of the tile where they do not)."""
    score_IJ: Tensor


class Layout(NamedTuple):
    """How the pairs are laid out over rows, columns and ranks."""

    captions: tuple[int, int]
    """Captions of an image among the rows and among the columns; one of the two is 1."""
    exchange: Literal["gather", "ring"]
    group: dist.ProcessGroup | None
    chunk: int


class Pairs:
    """The pairs of the rows of this rank with the columns of every rank."""

    def __init__(
        self, layout: Layout, make_tiles: scoring.MakeTiles, message_TW: Tensor, operands: tuple[Tensor, ...]
    ) -> None:
        self.captions = layout.captions
        self.rows = len(operands[0])
        self.batch = self.rows // layout.captions[0]
        """Images of this rank."""
        self._layout, self._make_tiles, self._operands = layout, make_tiles, operands
        self.exchange = Exchange(message_TW.unflatten(0, (layout.captions[1], -1)), layout.exchange, layout.group)
        self.dtype = operands[0].dtype
        """Of scores and sums; messages may be of lower precision."""

    def tiles(self, *, gradients: bool) -> Tiles:
        return self._make_tiles(self._operands, gradients=gradients)

    def scored(self, tiles: Tiles, block: Block) -> Iterator[Tile]:
        """The tiles of a block. None of them crosses from one caption of the images to the next."""
        columns = block.message_CNW.shape[1]
        message_NW = block.message_CNW.flatten(0, 1)
        for span in scoring.iterate_tiles(tiles, self.rows, len(message_NW), self._layout.chunk, self.captions):
            row_caption, row = divmod(span.rows.start, self.batch)
            column_caption, column = divmod(span.columns.start, columns)
            yield Tile(
                span.rows,
                row_caption,
                slice(column, column + span.columns.stop - span.columns.start),
                column_caption,
                block.offset + row - column,
                tiles.scores(message_NW[span.columns]),
            )


class Outcome(NamedTuple):
    """A loss over the pairs and its gradients."""

    loss: Tensor
    scale: Tensor
    bias: Tensor
    message_CBW: Tensor
    operands: tuple[Tensor, ...]
    clamped: Tensor


Loss = Callable[[Pairs, Tensor, Tensor], Outcome]
"""Of the logits `scale · score + bias`."""


def loss_over_pairs(
    loss: Loss, prepared: scoring.Prepared, layout: Layout, scale: Tensor, bias: Tensor
) -> tuple[Tensor, Tensor]:
    """The loss, differentiable in everything but the layout, and the number of pairs of this rank held at ±1."""
    return _WithGradient.apply(
        loss, layout, prepared.tiles, prepared.precision, scale, bias, prepared.message_TW, *prepared.rows
    )


class _WithGradient(torch.autograd.Function):
    """Runs a loss in the forward pass and hands out its gradients in the backward pass."""

    @staticmethod
    def forward(
        ctx: Any,
        loss: Loss,
        layout: Layout,
        make_tiles: scoring.MakeTiles,
        precision: torch.dtype,
        scale: Tensor,
        bias: Tensor,
        message_TW: Tensor,
        *operands: Tensor,
    ) -> tuple[Tensor, Tensor]:
        outcome = loss(Pairs(layout, make_tiles, message_TW.to(precision), operands), scale, bias)
        ctx.save_for_backward(outcome.scale, outcome.bias, outcome.message_CBW.flatten(0, 1), *outcome.operands)
        ctx.mark_non_differentiable(outcome.clamped)
        return outcome.loss, outcome.clamped

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor, _: Tensor) -> tuple[Any, ...]:
        return None, None, None, None, *(saved * gradient for saved in ctx.saved_tensors)
