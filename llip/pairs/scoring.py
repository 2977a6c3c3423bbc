"""Pair scores: the cosine of every image with every caption, whatever the head (Llip, section 3.2).

One side is the rows of the matrix, the other its columns. Mixtures are rows and the queries that mix them are columns,
so a model mixed by its images has its captions as rows. `prepare` does once a sample what no pair changes; `tiles` and
`mixture_tiles` hold the arithmetic of the pairs.

Axes: B rows · T columns · M heads · K tokens · E width of a head · D = M·E · X = M·K + 1 ·
W width of a column's message.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from llip import devices
from llip.devices import Device
from llip.model.features import ImageFeatures, Message, Mixture, Pooled, Query, TextFeatures
from llip.pairs.fused_tiles import FusedGramTiles, FusedOutputGramTiles
from llip.pairs.mixture_tiles import GramRows, GramTiles, OutputGramRows, OutputGramTiles
from llip.pairs.tiles import CosineRows, CosineTiles, Tiles
from llip.pairs.triton_costs import seconds_of_pair
from llip.pairs.triton_tiles import TritonGramTiles, runs


def pair_scores(
    images: ImageFeatures,
    texts: TextFeatures | Message,
    *,
    out_proj_DD: Tensor | None,
    temperature: float,
    chunk: int | None = None,
) -> Tensor:
    """Cosines [B, T] of every image with every caption, before scale and bias, in fp32 (fp64 for fp64 features).

    `out_proj_DD` (W_O, applied as `z = c @ W_O`) and `temperature` belong to mixtures; pooled features need neither.
    At most `chunk` columns are scored at once; None: as many as suit the device. Gradients are those of a second pass
    over the pairs; nothing of their number but the scores is kept.
    """
    swapped = isinstance(texts, Mixture)
    rows, columns = (texts, images) if swapped else (images, texts)
    prepared = prepare(
        rows,
        columns,
        out_proj_DD=out_proj_DD,
        temperature=temperature,
        total=len(columns[0]),
        gradients=torch.is_grad_enabled() and any(t.requires_grad for t in (*rows, *columns)),
    )
    score_BT = _PairScores.apply(prepared.tiles, chunk, prepared.message_TW, *prepared.rows)
    return score_BT.T if swapped else score_BT


MakeTiles = Callable[..., Tiles]


class Prepared(NamedTuple):
    """Both sides of a matrix of scores, under autograd, and what scores its tiles."""

    rows: CosineRows | GramRows | OutputGramRows
    message_TW: Tensor
    """The columns as they travel (`Message`), in at least fp32."""
    tiles: MakeTiles
    """Takes row operands and `gradients=True | False`."""
    precision: torch.dtype
    """Precision of the operands of products; it is enough for a message that travels."""


def prepare(
    rows: ImageFeatures | TextFeatures | Message,
    columns: ImageFeatures | TextFeatures | Message,
    *,
    out_proj_DD: Tensor | None,
    temperature: float,
    total: int,
    gradients: bool,
    split_gram: bool = True,
) -> Prepared:
    """Rows and columns with everything done that no pair changes. Each row will meet `total` columns over all ranks.

    `gradients` tells whether scores will be taken backwards: which form is cheaper depends on it.
    """
    precision = _precision(*rows, *columns)
    with torch.autocast(rows[0].device.type, enabled=False):
        match rows, columns:
            case Pooled(row_BD), Pooled() | Message():
                prepared_rows: CosineRows | GramRows | OutputGramRows = CosineRows(F.normalize(_wide(row_BD), dim=-1))
                tiles: MakeTiles = partial(CosineTiles, precision=precision)
            case Mixture(), Query() | Message():
                assert out_proj_DD is not None, "mixtures need the output projection"
                # Numerator and norm have to be of the same values: both of the rounded ones.
                key_BMKE, value_BMKE = _wide(rows.key_BMKE), _wide(rows.value_BMKE.to(precision))
                out_gram_DD = _wide(out_proj_DD) @ _wide(out_proj_DD).T
                _, heads, tokens, _ = key_BMKE.shape
                device = devices.of(key_BMKE.device)
                sizes = (heads, tokens, key_BMKE.shape[3])
                if device.triton and not runs(key_BMKE.device, precision, *sizes, split=split_gram):
                    device = replace(device, triton=False)
                if gram_is_cheaper(
                    tokens=tokens,
                    heads=heads,
                    dim=len(out_gram_DD),
                    columns=total,
                    gradients=gradients,
                    split=split_gram,
                    device=device,
                ):
                    prepared_rows = GramRows(key_BMKE, value_BMKE, _Gram.apply(value_BMKE, out_gram_DD))
                    gram_tiles = TritonGramTiles if device.triton else FusedGramTiles if device.fused else GramTiles
                    tiles = partial(gram_tiles, temperature=temperature, precision=precision, split=split_gram)
                else:
                    prepared_rows = OutputGramRows(key_BMKE, value_BMKE, out_gram_DD)
                    out_tiles = FusedOutputGramTiles if device.fused else OutputGramTiles
                    tiles = partial(out_tiles, temperature=temperature, precision=precision)
            case _:
                raise ValueError(f"{type(rows).__name__} cannot be compared with {type(columns).__name__}")
        return Prepared(prepared_rows, _message(columns, out_proj_DD), tiles, precision)


def message(columns: Pooled | Query, *, out_proj_DD: Tensor | None) -> Message:
    """Columns made ready for the rows of many calls of `pair_scores`, in the precision of products."""
    with torch.autocast(columns[0].device.type, enabled=False):
        return Message(_message(columns, out_proj_DD).to(_precision(*columns)))


def _message(columns: ImageFeatures | TextFeatures | Message, out_proj_DD: Tensor | None) -> Tensor:
    match columns:
        case Pooled(vector_TD):
            return F.normalize(_wide(vector_TD), dim=-1)
        case Query(query_TME, target_TD):
            assert out_proj_DD is not None, "queries need the output projection"
            target_TD = F.normalize(_wide(target_TD), dim=-1) @ _wide(out_proj_DD).T
            return torch.cat([_wide(query_TME).flatten(1), target_TD], dim=1)
        case Message(vector_TW):
            return _wide(vector_TW)
        case Mixture():
            raise ValueError("the tokens of a mixture cannot travel: the other side does")


def _precision(*features: Tensor) -> torch.dtype:
    """Precision of the operands of products: bf16 where the towers gave any (norms give fp32), else at least fp32."""
    return torch.bfloat16 if any(f.dtype == torch.bfloat16 for f in features) else _wide(features[0]).dtype


def _wide(tensor: Tensor) -> Tensor:
    """At least fp32."""
    return tensor if tensor.dtype == torch.float64 else tensor.float()


SMALL_PRODUCTS = 2
"""Time of a multiply-add in the making of a Gram matrix over that in a tile, whose products are larger: 1 to 2 with
gradients, 2.5 to 3 without, measured on a CPU for K from 8 to 64."""


def gram_is_cheaper(
    *,
    tokens: int,
    heads: int,
    dim: int,
    columns: int,
    gradients: bool,
    split: bool = True,
    device: Device = devices.CPU,
) -> bool:
    """Whether the Gram matrix of a row pays: K below the width of a head, and columns enough to share its making.

    Counted in multiply-adds that the two forms do not share. With X = MK, a pair takes X² for its norm through the Gram
    matrix and D² through `W_O W_Oᵀ`; both twice with gradients, and without them X²/2 for a symmetric matrix. Making a
    Gram matrix takes K D² + X K D, and about three times as much with gradients: two more products with D², one more
    with X. On a device whose tiles are fused, in seconds: its bytes count as well.
    """
    size = heads * tokens
    making = gram_making(size, dim, heads, gradients=gradients)
    if device.bandwidth is None or device.product_flops is None or device.single_flops is None:
        making *= SMALL_PRODUCTS
        if gradients:
            return 2 * columns * (dim**2 - size**2) > making
        return columns * (dim**2 - size**2 / 2) > making
    gram, output = (
        4 * numbers / device.bandwidth + 2 * flops / device.product_flops
        for numbers, flops in fused_costs(size, dim, gradients=gradients, split=split)
    )
    if device.triton:
        gram = seconds_of_pair(device, heads=heads, tokens=tokens, width=dim // heads, split=split, gradients=gradients)
        output += 2 * (6 if gradients else 2) * tokens * dim / device.product_flops  # what both forms above share
    return columns * (output - gram) > 2 * making / device.single_flops


def gram_making(size: int, dim: int, heads: int, *, gradients: bool) -> int:
    """Multiply-adds in the making of a row's Gram matrix, in fp32."""
    return size // heads * dim * (dim + size) * (3 if gradients else 1)


def fused_costs(size: int, dim: int, *, gradients: bool, split: bool) -> tuple[tuple[float, float], ...]:
    """Costs of a pair in `fused_tiles`, with the Gram matrix and without one.

    Each is the fp32 numbers that go through memory (of a bf16 number half), in products and between them, and the
    multiply-adds, less those that both share.
    """
    if gradients:
        return ((18.5 if split else 16) * size, (3 if split else 2) * size**2), (8 * size + 11 * dim, 2 * dim**2)
    return ((10.5 if split else 8) * size, (2 if split else 1) * size**2), (3 * size + 5 * dim, dim**2)


GRAM_ELEMENTS = 1 << 22
"""Projected values [rows, M·K, D] that exist at once."""


class _Gram(torch.autograd.Function):
    """Gram matrices [B, X, X] of projections: of the values less their mean, by head and token, and of the mean (last).

    The projected values, MK times a feature, are made for some rows at a time.
    """

    @staticmethod
    def forward(ctx: Any, value_BMKE: Tensor, out_gram_DD: Tensor) -> Tensor:
        ctx.save_for_backward(value_BMKE, out_gram_DD)
        batch, heads, tokens, _ = value_BMKE.shape
        size = heads * tokens + 1
        gram_BXX = value_BMKE.new_empty(batch, size, size)
        for rows in _gram_rows(value_BMKE):
            gram_BXX[rows] = _gram(value_BMKE[rows], out_gram_DD)
        return gram_BXX

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient_BXX: Tensor) -> tuple[Tensor, Tensor]:
        value_BMKE, out_gram_DD = ctx.saved_tensors
        value_gradient_BMKE, out_gram_gradient_DD = torch.empty_like(value_BMKE), torch.zeros_like(out_gram_DD)
        for rows in _gram_rows(value_BMKE):
            value_gradient_BMKE[rows], gradient_DD = _gram_backward(value_BMKE[rows], out_gram_DD, gradient_BXX[rows])
            out_gram_gradient_DD += gradient_DD
        return value_gradient_BMKE, out_gram_gradient_DD


def _gram_rows(value_BMKE: Tensor) -> Iterator[slice]:
    batch, heads, tokens, width = value_BMKE.shape
    return _spans(batch, batch, max(1, GRAM_ELEMENTS // (heads * tokens * heads * width)))


def _gram(value_BMKE: Tensor, out_gram_DD: Tensor) -> Tensor:
    rows, heads, tokens, width = value_BMKE.shape
    centred_BMKE, mean_BME = _centred(value_BMKE)
    mean_BD = mean_BME.flatten(1)
    # Products with W_O W_Oᵀ instead of projections: a centred value has E entries, its projection D.
    centred_MNE = centred_BMKE.transpose(0, 1).flatten(1, 2)
    image_MND = centred_MNE @ out_gram_DD.view(heads, width, -1)
    image_BMXE = image_MND.view(heads, rows, tokens, heads, width).permute(1, 3, 0, 2, 4).flatten(2, 3)
    inner_BXX = (image_BMXE @ centred_BMKE.transpose(2, 3)).transpose(1, 2).flatten(2)
    mean_image_BD = mean_BD @ out_gram_DD
    edge_BX1 = (centred_BMKE @ mean_image_BD.view(rows, heads, width, 1)).flatten(1, 2)
    corner_B11 = (mean_image_BD * mean_BD).sum(dim=1)[:, None, None]
    upper_BXX = torch.cat([inner_BXX, edge_BX1], dim=2)
    return torch.cat([upper_BXX, torch.cat([edge_BX1.transpose(1, 2), corner_B11], dim=2)], dim=1)


def _gram_backward(value_BMKE: Tensor, out_gram_DD: Tensor, gradient_BXX: Tensor) -> tuple[Tensor, Tensor]:
    """Gradients of the values and of the symmetric matrix Q between them.

    With `G = A Q Aᵀ` and S = g + gᵀ they are `S A Q` and `Aᵀ S A / 2`.

    A row of A has a centred value in the columns of its head, the last row the mean.
    """
    rows, heads, tokens, width = value_BMKE.shape
    centred_BMKE, mean_BME = _centred(value_BMKE)
    sum_BXX = gradient_BXX + gradient_BXX.transpose(1, 2)
    of_token_BMXK = sum_BXX[:, :, :-1].unflatten(2, (heads, tokens)).transpose(1, 2)
    seen_BMXE = of_token_BMXK @ centred_BMKE + sum_BXX[:, None, :, -1:] * mean_BME[:, :, None]  # S A, by head

    seen_BMMKE = seen_BMXE[:, :, :-1].unflatten(2, (heads, tokens))
    seen_MND = seen_BMMKE.permute(2, 0, 3, 1, 4).flatten(3).flatten(1, 2)
    seen_by_mean_BD = seen_BMXE[:, :, -1].flatten(1)
    centred_gradient_MNE = seen_MND @ out_gram_DD.unflatten(1, (heads, width)).transpose(0, 1)
    centred_gradient_BMKE = centred_gradient_MNE.unflatten(1, (rows, tokens)).transpose(0, 1)
    mean_gradient_BME = (seen_by_mean_BD @ out_gram_DD).view_as(mean_BME) / tokens - centred_gradient_BMKE.mean(dim=2)

    centred_MEN = centred_BMKE.transpose(0, 1).flatten(1, 2).transpose(1, 2)
    out_gram_gradient_DD = (centred_MEN @ seen_MND).flatten(0, 1) + mean_BME.flatten(1).T @ seen_by_mean_BD
    return centred_gradient_BMKE + mean_gradient_BME[:, :, None], out_gram_gradient_DD / 2


def _centred(value_BMKE: Tensor) -> tuple[Tensor, Tensor]:
    """Values less their mean over the tokens, and the mean [B, M, E]."""
    mean_BME = value_BMKE.mean(dim=2)
    return value_BMKE - mean_BME[:, :, None], mean_BME


class Span(NamedTuple):
    """Rows and columns of a tile."""

    rows: slice
    columns: slice


WIDE_WITHOUT_GRADIENTS = 256
"""Columns of a tile at least, where no gradient wants rows as long: a row's own Gram matrix meets as many at once."""


def iterate_tiles(
    tiles: Tiles, rows: int, columns: int, chunk: int | None, groups: tuple[int, int] = (1, 1)
) -> Iterator[Span]:
    """The tiles of a matrix, row by row of tiles; rows are opened before and closed after their tiles.

    No tile crosses the border of a group, where rows and columns fall into so many of equal size.
    """
    row_size, column_size = rows // groups[0], columns // groups[1]
    device = devices.of(tiles.clamped.device)
    pairs = max(1, device.tile // tiles.elements)
    square = math.isqrt(4 * pairs)  # about four times as wide as high
    if device.fused:  # a power of two divides most batches; few rows leave room for more
        square = max(1 << (square.bit_length() - 1), pairs // row_size // 64 * 64)
    square = square if tiles.gradients else max(square, WIDE_WITHOUT_GRADIENTS)
    wide = min(column_size, chunk or device.columns or column_size, _ceil(square, 64) * 64)
    high = _ceil(row_size, _ceil(row_size, max(1, pairs // wide)))
    for row_span in _spans(rows, row_size, high):
        tiles.open(row_span)
        for column_span in _spans(columns, column_size, wide):
            yield Span(row_span, column_span)
        tiles.close()


def _ceil(total: int, size: int) -> int:
    return -(-total // size)


def _spans(total: int, group: int, size: int) -> Iterator[slice]:
    for first in range(0, total, group):
        for start in range(first, first + group, size):
            yield slice(start, min(start + size, first + group))


class _PairScores(torch.autograd.Function):
    """Scores by tiles; the backward pass scores each tile again."""

    @staticmethod
    def forward(ctx: Any, make_tiles: MakeTiles, chunk: int | None, message_TW: Tensor, *operands: Tensor) -> Tensor:
        ctx.make_tiles, ctx.chunk = make_tiles, chunk
        ctx.save_for_backward(message_TW, *operands)
        with torch.autocast(message_TW.device.type, enabled=False):
            tiles = make_tiles(operands, gradients=False)
            score_BT = message_TW.new_empty(len(operands[0]), len(message_TW))
            for rows, columns in iterate_tiles(tiles, len(score_BT), len(message_TW), chunk):
                score_BT[rows, columns] = tiles.scores(message_TW[columns])
        return score_BT

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient_BT: Tensor) -> tuple[Any, ...]:
        message_TW, *operands = ctx.saved_tensors
        with torch.autocast(message_TW.device.type, enabled=False):
            tiles = ctx.make_tiles(operands, gradients=True)
            message_gradient_TW = torch.zeros_like(message_TW)
            for rows, columns in iterate_tiles(tiles, len(gradient_BT), len(message_TW), ctx.chunk):
                tiles.scores(message_TW[columns])
                tiles.backward(gradient_BT[rows, columns], message_gradient_TW[columns])
        return None, None, message_gradient_TW, *tiles.gradients
