"""The contrastive losses over the global batch: sigmoid (SigLIP, Llip) and softmax (CLIP).

Captions are caption-major: row `c * B + i` is caption c of local image i, the positive of that image and a negative of
every other one. The loss is the mean over c of the losses of the images with their captions c.

Axes: I rows of a tile · J columns of a tile · B images of a rank · C captions of an image · N columns of a block.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn import functional as F

from llip.config import ObjectiveConfig
from llip.model.features import ImageFeatures, Pooled, Query, TextFeatures
from llip.pairs import scoring
from llip.pairs.exchange import Block
from llip.pairs.pair_scores import Layout, Loss, Outcome, Pairs, Tile, loss_over_pairs


class LossOutput(NamedTuple):
    """`loss` is a scalar; `clamped_pairs` counts the pairs of this rank whose cosine rounding took beyond ±1.

    They are held at ±1 and get no gradient. More than a few of them say that the precision does not suffice.
    """

    loss: Tensor
    clamped_pairs: Tensor


class ScoreParameters(NamedTuple):
    """What makes logits of features: W_O and temperature of the mixture, log scale and bias of the cosines."""

    out_proj_DD: Tensor | None
    temperature: float
    logit_scale: Tensor
    logit_bias: Tensor | None


def score_parameters(model: Any) -> ScoreParameters:
    """Of a `ContrastiveModel`. W_O is left out where the towers have applied it already."""
    mixed = model.config.head.kind in ("text_query", "image_query")
    return ScoreParameters(
        out_proj_DD=model.head.out_proj if mixed else None,
        temperature=model.config.head.temperature,
        logit_scale=model.logit_scale,
        logit_bias=model.logit_bias,
    )


def contrastive_loss(
    model: Any,
    images: ImageFeatures,
    texts: TextFeatures,
    *,
    config: ObjectiveConfig,
    captions_per_image: int = 1,
    group: dist.ProcessGroup | None = None,
) -> LossOutput:
    """The loss of B images and their C·B captions; with `group`, of the batches of all its ranks, of one size.

    Differentiable in the features, W_O, the scale and the bias. The mean over ranks of `loss`, and of its gradients, is
    that of the whole batch on one process: what DistributedDataParallel takes. The gradients are made with the loss, so
    this is not cheaper under `no_grad`. Raises ValueError where the captions are not C for each image.
    """
    return loss_of_features(
        images, texts, score_parameters(model), config=config, captions_per_image=captions_per_image, group=group
    )


def loss_of_features(
    images: ImageFeatures,
    texts: TextFeatures,
    parameters: ScoreParameters,
    *,
    config: ObjectiveConfig,
    captions_per_image: int = 1,
    group: dist.ProcessGroup | None = None,
) -> LossOutput:
    """`contrastive_loss` with the parameters of the model given one by one."""
    if len(texts[0]) != captions_per_image * len(images[0]):
        raise ValueError(
            f"{len(texts[0])} captions came with {len(images[0])} images; "
            f"{captions_per_image} captions an image make {captions_per_image * len(images[0])}"
        )
    # Rows stay on their rank and columns travel: queries, smaller than mixtures, or the fewer of pooled features.
    swapped = isinstance(images, Query) or (isinstance(images, Pooled) and captions_per_image > 1)
    rows, columns = (texts, images) if swapped else (images, texts)
    prepared = scoring.prepare(
        rows,
        columns,
        out_proj_DD=parameters.out_proj_DD,
        temperature=parameters.temperature,
        total=len(columns[0]) * (1 if group is None else dist.get_world_size(group)),
        gradients=True,
        split_gram=config.split_gram,
    )
    captions = (captions_per_image, 1) if swapped else (1, captions_per_image)
    layout = Layout(captions, config.exchange, group, config.chunk)
    scale, bias = parameters.logit_scale.exp(), parameters.logit_bias
    bias = torch.zeros_like(scale) if bias is None else bias
    return LossOutput(*loss_over_pairs(LOSSES[config.loss], prepared, layout, scale, bias))


class _Gradients:
    """What the pairs add up to: gradients tile by tile, and sums in fp64, as there are billions of terms."""

    def __init__(self, pairs: Pairs, scale: Tensor) -> None:
        self._pairs, self._scale = pairs, scale
        self._tiles = pairs.tiles(gradients=True)
        self.loss, self._scale_gradient, self._bias_gradient = scale.new_zeros(3, dtype=torch.float64).unbind()

    def of_block(self, block: Block, slope: Callable[[Tile], Tensor]) -> Tensor:
        """Add a block's pairs, given the gradient of the logits of a tile; returns that of the columns."""
        gradient_CNW = torch.zeros_like(block.message_CNW, dtype=self._pairs.dtype)
        for tile in self._pairs.scored(self._tiles, block):
            slope_IJ = slope(tile)
            self._scale_gradient += (slope_IJ * tile.score_IJ).sum(dtype=torch.float64)
            self._bias_gradient += slope_IJ.sum(dtype=torch.float64)
            self._tiles.backward(slope_IJ * self._scale, gradient_CNW[tile.column_caption, tile.columns])
        return gradient_CNW

    def outcome(self, weight: float, message_CBW: Tensor) -> Outcome:
        sums = (self.loss * weight, self._scale_gradient, self._bias_gradient)
        loss, scale, bias = (total.to(self._scale.dtype) for total in sums)
        return Outcome(loss, scale, bias, message_CBW, self._tiles.gradients, self._tiles.clamped)


def sigmoid(pairs: Pairs, scale: Tensor, bias: Tensor) -> Outcome:
    """`-(1/B) Σ_ij log σ(y_ij x_ij)`, y = +1 for a row's own column, else -1 (Zhai et al. 2023; Llip, section 3.1)."""
    weight = 1 / (pairs.batch * math.prod(pairs.captions))
    sums = _Gradients(pairs, scale)

    def slope(tile: Tile) -> Tensor:
        flipped_IJ = tile.score_IJ * scale + bias  # -y x: the loss is softplus of it
        flipped_IJ.diagonal(tile.diagonal).neg_()
        sums.loss -= F.logsigmoid(-flipped_IJ).sum(dtype=torch.float64)
        slope_IJ = flipped_IJ.sigmoid_().mul_(weight)
        slope_IJ.diagonal(tile.diagonal).neg_()
        return slope_IJ

    return sums.outcome(weight, pairs.exchange.visit(lambda block: sums.of_block(block, slope), combine="sum"))


def softmax(pairs: Pairs, scale: Tensor, bias: Tensor) -> Outcome:
    """Symmetric InfoNCE: the mean of the cross-entropies of images over captions and of captions over images (CLIP).

    In two passes over the pairs: the first one takes the log-sum-exp of every row and of every column over all ranks.
    """
    row_captions, column_captions = pairs.captions
    weight = 1 / (2 * pairs.batch * row_captions * column_captions)
    sums = _Gradients(pairs, scale)
    row_CR = torch.full((column_captions, pairs.rows), -math.inf, dtype=pairs.dtype, device=scale.device)
    tiles = pairs.tiles(gradients=False)

    def normalisers(block: Block) -> Tensor:
        column_CNC = torch.full(
            (*block.message_CNW.shape[:2], row_captions), -math.inf, dtype=pairs.dtype, device=scale.device
        )
        for tile in pairs.scored(tiles, block):
            logit_IJ = tile.score_IJ * scale + bias
            sums.loss -= 2 * logit_IJ.diagonal(tile.diagonal).sum(dtype=torch.float64)
            row_I = row_CR[tile.column_caption, tile.rows]
            column_J = column_CNC[tile.column_caption, tile.columns, tile.row_caption]
            row_I.copy_(torch.logaddexp(row_I, logit_IJ.logsumexp(dim=1)))
            column_J.copy_(torch.logaddexp(column_J, logit_IJ.logsumexp(dim=0)))
        return column_CNC

    column_CBC = pairs.exchange.visit(normalisers, combine="logsumexp")
    sums.loss += row_CR.sum(dtype=torch.float64) + column_CBC.sum(dtype=torch.float64)

    def gradients(block: Block) -> Tensor:
        assert block.attached_CNA is not None
        normaliser_CNC = block.attached_CNA

        def slope(tile: Tile) -> Tensor:
            logit_IJ = tile.score_IJ * scale + bias
            row_I = row_CR[tile.column_caption, tile.rows]
            column_J = normaliser_CNC[tile.column_caption, tile.columns, tile.row_caption]
            slope_IJ = (logit_IJ - row_I[:, None]).exp_() + (logit_IJ - column_J).exp_()
            slope_IJ.diagonal(tile.diagonal).sub_(2)
            return slope_IJ.mul_(weight)

        return sums.of_block(block, slope)

    return sums.outcome(weight, pairs.exchange.visit(gradients, combine="sum", attached_CBA=column_CBC))


LOSSES: dict[str, Loss] = {"sigmoid": sigmoid, "softmax": softmax}
