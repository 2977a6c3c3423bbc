"""The contrastive losses over the global batch: sigmoid (SigLIP, Llip) and softmax (CLIP).

A loss is one function of a tile of logits, which returns its value there and its slope, d loss / d logit.
`loss_of_features` shows it the pairs of the global batch tile by tile and takes every slope backwards at once, so
gradients are made in the forward pass and nothing of the number of pairs is kept. `README.md` says how to add a loss.

Captions are caption-major: row `c * B + i` is caption c of local image i, the positive of that image and a negative of
every other one (`objective.multi_positive`: of every other one that has no such caption). The loss is the mean over c
of the losses of the images with their captions c.

Axes: I rows of a tile · J columns of a tile · B images of a rank · C captions of an image · R rows of a rank ·
T columns of a rank · N columns of a block, by caption · W width of a message · P positives of a tile.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from llip.config import LossName, ObjectiveConfig
from llip.model.features import ImageFeatures, Pooled, Query, TextFeatures
from llip.pairs import scoring
from llip.pairs.distillation import Taught, Teacher
from llip.pairs.exchange import ColumnBlock, Exchange
from llip.pairs.positives import Positives
from llip.pairs.tiles import Tiles


class Tile(NamedTuple):
    """Logits of some rows with some columns, images with captions or the other way round. A loss may overwrite them."""

    logit_IJ: Tensor
    diagonal: int
    """Diagonal on which rows meet their own columns, the positives; it may lie outside of the tile."""
    row_logsumexp_I: Tensor | None = None
    """Log-sum-exp of each row's logits with all columns, over all ranks; for losses that are `normalised`."""
    column_logsumexp_J: Tensor | None = None
    """Log-sum-exp of each column's logits with all rows, over all ranks; for losses that are `normalised`."""

    positives: tuple[Tensor, Tensor] | None = None
    """Rows and columns [P] of the positives where they are other than the diagonal."""
    shares: tuple[Tensor | float, Tensor | float] = (1.0, 1.0)
    """One over the positives of each positive's row, and of its column, over all ranks."""

    def at_positives(self, tensor: Tensor) -> Tensor:
        """The positives [P] of a tensor of the tile's shape, or of one that broadcasts to it."""
        wide_IJ = tensor.expand(self.logit_IJ.shape)
        return wide_IJ.diagonal(self.diagonal) if self.positives is None else wide_IJ[self.positives]

    def set_positives(self, tensor_IJ: Tensor, value_P: Tensor) -> None:
        """Write the positives of a tensor of the tile's shape."""
        if self.positives is None:
            tensor_IJ.diagonal(self.diagonal).copy_(value_P)
        else:
            tensor_IJ[self.positives] = value_P


TileLoss = Callable[[Tile], tuple[Tensor, Tensor]]
"""Value on a tile, a sum in fp64, and slope [I, J] of a loss that is a sum over the images of the batch."""


class Loss(NamedTuple):
    """A loss over all pairs, divided by the images of the global batch."""

    tile: TileLoss
    normalised: bool = False
    """Whether tiles bring log-sum-exps along, which take a pass over the pairs of their own."""


def sigmoid(tile: Tile) -> tuple[Tensor, Tensor]:
    """`-Σ_ij log σ(y_ij x_ij)`, y = +1 for positives, else -1 (Zhai et al. 2023; Llip, section 3.1)."""
    flipped_IJ = tile.logit_IJ  # -y x
    tile.set_positives(flipped_IJ, -tile.at_positives(flipped_IJ))
    value = -F.logsigmoid(-flipped_IJ).sum(dtype=torch.float64)
    slope_IJ = flipped_IJ.sigmoid_()  # -y σ(-y x)
    tile.set_positives(slope_IJ, -tile.at_positives(slope_IJ))
    return value, slope_IJ


def softmax(tile: Tile) -> tuple[Tensor, Tensor]:
    """`½ Σ_i 1/|P_i| Σ_{k in P_i} (log Σ_j exp x_ij - x_ik)`, and the same over columns: symmetric InfoNCE.

    P_i are the positives of row i: its own column alone (CLIP), or several (UniCL, arXiv 2204.03610).
    """
    assert tile.row_logsumexp_I is not None and tile.column_logsumexp_J is not None
    logit_IJ, row_I1, column_J = tile.logit_IJ, tile.row_logsumexp_I[:, None], tile.column_logsumexp_J
    own_P, (row_share, column_share) = tile.at_positives(logit_IJ), tile.shares
    value_P = (tile.at_positives(row_I1) - own_P) * row_share + (tile.at_positives(column_J) - own_P) * column_share
    slope_IJ = torch.lerp((logit_IJ - row_I1).exp_(), (logit_IJ - column_J).exp_(), 0.5)  # the mean of both softmaxes
    tile.set_positives(slope_IJ, tile.at_positives(slope_IJ) - (row_share + column_share) / 2)
    return value_P.sum(dtype=torch.float64) / 2, slope_IJ


LOSSES: dict[LossName, Loss] = {"sigmoid": Loss(sigmoid), "softmax": Loss(softmax, normalised=True)}


class LossOutput(NamedTuple):
    """The loss, a scalar, and the number of pairs of this rank whose cosine was beyond ±1 by rounding.

    These pairs are clamped to ±1 and get no gradient. More than a few of them say that the precision does not suffice.
    """

    loss: Tensor
    clamped_pairs: Tensor


class ScoreParameters(NamedTuple):
    """Parameters between features and logits: W_O and temperature of the mixture, log scale and bias of the cosines."""

    out_proj_DD: Tensor | None
    temperature: float
    logit_scale: Tensor
    logit_bias: Tensor | None


def score_parameters(model: Any) -> ScoreParameters:
    """The parameters of a `ContrastiveModel`. W_O is left out where the towers have applied it already."""
    mixed = model.config.head.kind in ("text_query", "image_query")
    return ScoreParameters(
        out_proj_DD=model.head.out_proj if mixed else None,
        temperature=model.config.mixing_temperature,
        logit_scale=model.logit_scale,
        logit_bias=model.logit_bias,
    )


def loss_of_features(
    images: ImageFeatures,
    texts: TextFeatures,
    parameters: ScoreParameters,
    *,
    config: ObjectiveConfig,
    captions_per_image: int = 1,
    group: dist.ProcessGroup | None = None,
    images_by_rank: Sequence[int] | None = None,
    caption_ids_T: Tensor | None = None,
    teacher: Teacher | None = None,
) -> LossOutput:
    """The loss of B images and their C·B captions; with `group`, of the batches of all its ranks.

    `images_by_rank` says how many images each rank has; without it, all have as many. `caption_ids_T` (see
    `positives.caption_ids`) make every caption a positive of each image that has an equal one; without them, it is of
    its own image alone. With a `teacher`, the share `config.distillation` of the loss follows it. Differentiable in the
    features, W_O, the scale and the bias. The mean over ranks of `loss`, and of its gradients, is that of the whole
    batch on one process: what DistributedDataParallel takes. The gradients are made with the loss, so this is not
    cheaper under `no_grad`. Raises ValueError where the captions are not C for each image.
    """
    if len(texts[0]) != captions_per_image * len(images[0]):
        raise ValueError(
            f"{len(texts[0])} captions came with {len(images[0])} images; "
            f"{captions_per_image} captions an image make {captions_per_image * len(images[0])}"
        )
    ranks = 1 if group is None else dist.get_world_size(group)
    images_by_rank = images_by_rank or [len(images[0])] * ranks
    # Rows stay on their rank and columns travel: queries, smaller than mixtures, or the fewer of pooled features.
    swapped = isinstance(images, Query) or (isinstance(images, Pooled) and captions_per_image > 1)
    rows, columns = (texts, images) if swapped else (images, texts)
    captions = (captions_per_image, 1) if swapped else (1, captions_per_image)
    prepared = scoring.prepare(
        rows,
        columns,
        out_proj_DD=parameters.out_proj_DD,
        temperature=parameters.temperature,
        total=captions[1] * sum(images_by_rank),
        gradients=True,
        split_gram=config.split_gram,
    )
    scale, bias = parameters.logit_scale.exp(), parameters.logit_bias
    bias = torch.zeros_like(scale) if bias is None else bias
    id_CB = None if caption_ids_T is None else caption_ids_T.to(scale.device).unflatten(0, (captions_per_image, -1))
    layout = Layout(config, captions, group, images_by_rank, id_CB)
    if teacher is not None:
        layout = layout._replace(taught=_taught(teacher, layout, swapped=swapped, dtype=prepared.message_TW.dtype))
    return loss_over_pairs(prepared, layout, scale, bias)


@torch.no_grad()
def _taught(teacher: Teacher, layout: "Layout", *, swapped: bool, dtype: torch.dtype) -> Taught:
    """The teacher over the same rows and columns; its log-sum-exps take a pass over its pairs."""
    sides = Pooled(teacher.image_BD.to(dtype)), Pooled(teacher.caption_TD.to(dtype))
    rows, columns = sides[::-1] if swapped else sides
    prepared = scoring.prepare(
        rows, columns, out_proj_DD=None, temperature=1.0, total=len(columns.vector_BD), gradients=False
    )
    message_TW, scale = prepared.message_TW, rows.vector_BD.new_tensor(teacher.logit_scale)
    with torch.autocast(scale.device.type, enabled=False):
        pairs = _Pairs(prepared, layout, scale, torch.zeros_like(scale), message_TW, tuple(prepared.rows))
        row_logsumexp_CR, column_logsumexp_CBC = pairs.logsumexps()
    unit_CBD = message_TW.unflatten(0, (layout.captions[1], -1))
    attached_CBA = torch.cat([column_logsumexp_CBC, unit_CBD], dim=2)
    return Taught(prepared.rows[0], row_logsumexp_CR, attached_CBA, teacher.logit_scale)


class Layout(NamedTuple):
    """The loss, and how its pairs are laid out over rows, columns and ranks."""

    config: ObjectiveConfig
    captions: tuple[int, int]
    """Captions of an image among the rows and among the columns; one of the two is 1."""
    group: dist.ProcessGroup | None
    images_by_rank: Sequence[int]
    id_CB: Tensor | None = None
    """Ids of this rank's captions, where equal ones are positives of one another's images."""
    taught: Taught | None = None
    """A teacher, where a share of the loss follows one."""


def loss_over_pairs(prepared: scoring.Prepared, layout: Layout, scale: Tensor, bias: Tensor) -> LossOutput:
    """The loss of logits `scale · cosine + bias`, differentiable in these two, in the rows and in the messages."""
    return LossOutput(*_LossOverPairs.apply(prepared, layout, scale, bias, prepared.message_TW, *prepared.rows))


class _LossOverPairs(torch.autograd.Function):
    """Makes the gradients in the forward pass and hands them out in the backward pass."""

    @staticmethod
    def forward(
        ctx: Any,
        prepared: scoring.Prepared,
        layout: Layout,
        scale: Tensor,
        bias: Tensor,
        message_TW: Tensor,
        *operands: Tensor,
    ) -> tuple[Tensor, Tensor]:
        loss = LOSSES[layout.config.loss]
        with torch.autocast(message_TW.device.type, enabled=False):
            pairs = _Pairs(prepared, layout, scale, bias, message_TW, operands)
            normalised = loss.normalised or layout.taught is not None
            value, clamped, *gradients = pairs.add_up(loss.tile, pairs.logsumexps() if normalised else None)
        ctx.save_for_backward(*gradients)
        ctx.mark_non_differentiable(clamped)
        return value, clamped

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor, _: Tensor) -> tuple[Any, ...]:
        return None, None, *(saved * gradient for saved in ctx.saved_tensors)


class _Place(NamedTuple):
    """Place of a tile in a block."""

    rows: slice
    """Rows among all of this rank."""
    row_caption: int
    columns: slice
    """Columns among those of `column_caption`."""
    column_caption: int
    diagonal: int
    images: tuple[slice, slice]
    """Images of the rows and of the columns, among those of all ranks."""


class _Pairs:
    """The pairs of the rows of this rank with the columns of every rank, and sums over them."""

    def __init__(
        self,
        prepared: scoring.Prepared,
        layout: Layout,
        scale: Tensor,
        bias: Tensor,
        message_TW: Tensor,
        operands: tuple[Tensor, ...],
    ) -> None:
        self._layout, self._scale, self._bias = layout, scale, bias
        self._make_tiles, self._operands = prepared.tiles, operands
        self._rows = len(operands[0])
        self._dtype = operands[0].dtype  # of scores and sums; messages may be of lower precision
        message_CBW = message_TW.to(prepared.precision).unflatten(0, (layout.captions[1], -1))
        self._exchange = Exchange(message_CBW, layout.config.exchange, layout.group, layout.images_by_rank)
        self._positives: Positives | None = None
        if layout.id_CB is not None:
            id_CN = self._exchange.gather(layout.id_CB[:, :, None])[:, :, 0]  # 8 bytes a caption, also around the ring
            self._positives = Positives(id_CN, captions_are_rows=layout.captions[0] > 1, dtype=self._dtype)

    def _scored(self, tiles: Tiles, block: ColumnBlock) -> Iterator[tuple[_Place, Tensor]]:
        """Places and cosines of the tiles of a block. No tile crosses from one caption of the images to the next."""
        chunk, captions = self._layout.config.chunk, self._layout.captions
        images, columns = self._rows // captions[0], block.message_CNW.shape[1]
        message_NW = block.message_CNW.flatten(0, 1)
        for span in scoring.iterate_tiles(tiles, self._rows, len(message_NW), chunk, captions):
            row_caption, row = divmod(span.rows.start, images)
            column_caption, column = divmod(span.columns.start, columns)
            height, width = (side.stop - side.start for side in span)
            first_row, first_column = self._exchange.first + row, block.first + column
            place = _Place(
                span.rows,
                row_caption,
                slice(column, column + width),
                column_caption,
                block.offset + row - column,
                (slice(first_row, first_row + height), slice(first_column, first_column + width)),
            )
            yield place, tiles.scores(message_NW[span.columns])

    def logsumexps(self) -> tuple[Tensor, Tensor]:
        """Log-sum-exp of the logits of each row, by caption of the columns, [C, R], and of each column, [C, B, C]."""
        row_captions, column_captions = self._layout.captions
        row_CR = self._scale.new_full((column_captions, self._rows), -math.inf, dtype=self._dtype)
        tiles = self._make_tiles(self._operands, gradients=False)
        trip = self._exchange.round_trip(row_captions, combine="logsumexp", dtype=self._dtype)
        for block in trip:
            for place, score_IJ in self._scored(tiles, block):
                logit_IJ = score_IJ * self._scale + self._bias
                row_I = row_CR[place.column_caption, place.rows]
                column_J = block.found_CNF[place.column_caption, place.columns, place.row_caption]
                row_I.copy_(torch.logaddexp(row_I, logit_IJ.logsumexp(dim=1)))
                column_J.copy_(torch.logaddexp(column_J, logit_IJ.logsumexp(dim=0)))
        return row_CR, trip.home_CBF

    def add_up(self, loss: TileLoss, logsumexps: tuple[Tensor, Tensor] | None) -> tuple[Tensor, ...]:
        """The loss, the number of clamped pairs, and gradients of scale, bias, message and operands.

        Scalars are summed in fp64, as there are billions of terms.
        """
        row_CR, column_CBC = logsumexps or (None, None)
        # The mean over ranks is the mean over images and captions of the global batch.
        weight = self._exchange.size / (sum(self._layout.images_by_rank) * math.prod(self._layout.captions))
        value, scale_gradient, bias_gradient = self._scale.new_zeros(3, dtype=torch.float64).unbind()
        tiles = self._make_tiles(self._operands, gradients=True)
        width = self._exchange.message_CBW.shape[2]
        taught, share = self._layout.taught, self._layout.config.distillation
        if taught is not None and column_CBC is not None:
            column_CBC = torch.cat([column_CBC, taught.attached_CBA], dim=2)
        trip = self._exchange.round_trip(width, combine="sum", dtype=self._dtype, attached_CBA=column_CBC)
        for block in trip:
            for place, score_IJ in self._scored(tiles, block):
                tile = Tile(score_IJ * self._scale + self._bias, place.diagonal)
                divergence = None
                if row_CR is not None and block.attached_CNA is not None:
                    row_I = row_CR[place.column_caption, place.rows]
                    attached_JA = block.attached_CNA[place.column_caption, place.columns]
                    column_J = attached_JA[:, place.row_caption]
                    tile = tile._replace(row_logsumexp_I=row_I, column_logsumexp_J=column_J)
                    if taught is not None:  # first, as the loss may overwrite the logits
                        captions = place.row_caption, place.column_caption
                        of_teacher = taught.tile(place.rows, captions, attached_JA[:, self._layout.captions[0] :])
                        divergence = of_teacher.divergence(tile.logit_IJ, row_I, column_J)
                if self._positives is not None:
                    positives, shares = self._positives.of(place.row_caption + place.column_caption, *place.images)
                    tile = tile._replace(positives=positives, shares=shares)
                tile_value, slope_IJ = loss(tile)
                if divergence is not None:
                    tile_value, slope_IJ = (
                        torch.lerp(own, other, share)
                        for own, other in zip((tile_value, slope_IJ), divergence, strict=True)
                    )
                slope_IJ *= weight
                value += tile_value
                scale_gradient += (slope_IJ * score_IJ).sum(dtype=torch.float64)
                bias_gradient += slope_IJ.sum(dtype=torch.float64)
                tiles.backward(slope_IJ * self._scale, block.found_CNF[place.column_caption, place.columns])
        scalars = (total.to(self._scale.dtype) for total in (value * weight, scale_gradient, bias_gradient))
        loss_value, *of_scale_and_bias = scalars
        message_TW = trip.home_CBF.flatten(0, 1)
        return loss_value, tiles.clamped, *of_scale_and_bias, message_TW, *tiles.gradients
