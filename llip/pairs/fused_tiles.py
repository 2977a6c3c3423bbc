"""The two forms of `mixture_tiles` in few passes over memory, for GPUs: fewer bytes, though not fewer FLOPs.

Between products stand functions that a compiler makes one kernel each (`devices.Fused`). A product writes fp32 once,
what the next products read is written once in their precision, and nothing else of a tile's size is stored: weights are
made again from their logits. The mean of the values is kept apart from the deviations from it (X = M·K has no further
row for it, and a mixture is one of deviations), so rows of operands stay aligned, and what the mean adds is made once
for some rows.

Axes: as in `tiles`, but X = M·K.
"""

from collections.abc import Iterable

import torch
from torch import Tensor

from llip.devices import Fused
from llip.pairs.mixture_tiles import MixtureTiles, OutputGramRows, WithGram
from llip.pairs.tiles import SMALLEST_SQUARE, product


@Fused
def mixing_weights(logit_MKIJ: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
    """Softmax over K less 1/K, in the precision of `like`, and the log-sum-exp from which it can be made again."""
    logit_MIJK = logit_MKIJ.permute(0, 2, 3, 1)  # sums over the last axis are fused with what follows them
    largest = logit_MIJK.amax(dim=-1, keepdim=True)
    exponential = (logit_MIJK - largest).exp()
    total = exponential.sum(dim=-1, keepdim=True)
    weight = (exponential / total - 1 / logit_MIJK.shape[-1]).to(like.dtype)
    return weight.permute(0, 3, 1, 2), (largest + total.log())[..., 0]


@Fused
def gram_sums(
    logit_MKIJ: Tensor, logsumexp_MIJ: Tensor, value_MKIJ: Tensor, gram_IMKJ: Tensor, edge_MKI1: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """For each head `Σ_k a w`, the numerator, `Σ_k D (GD + b)`, and of the squared norm `Σ_k D (GD + 2b)`."""
    weight = (logit_MKIJ - logsumexp_MIJ[:, None]).exp()
    centred, seen = weight - 1 / weight.shape[1], gram_IMKJ.permute(1, 2, 0, 3) + edge_MKI1
    along = (centred * seen).sum(dim=1)
    return (weight * value_MKIJ).sum(dim=1), along, along + (centred * edge_MKI1).sum(dim=1)


@Fused
def gram_slopes(
    logit_MKIJ: Tensor,
    logsumexp_MIJ: Tensor,
    value_MKIJ: Tensor,
    gram_IMKJ: Tensor,
    edge_MKI1: Tensor,
    numerator_MIJ: Tensor,
    along_MIJ: Tensor,
    slope_IJ: Tensor,
    ratio_IJ: Tensor,
    like: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """`ṅ a`, `ṅ r D` and the gradient of the logits `ṅ a x`, x = w - r (GD + b) less its mean under a."""
    weight = (logit_MKIJ - logsumexp_MIJ[:, None]).exp()
    x = value_MKIJ - numerator_MIJ[:, None]
    x = x - ratio_IJ * (gram_IMKJ.permute(1, 2, 0, 3) + edge_MKI1 - along_MIJ[:, None])
    scaled, gamma = weight * slope_IJ, (weight - 1 / weight.shape[1]) * (slope_IJ * ratio_IJ)
    return scaled.to(like.dtype), gamma.to(like.dtype), (scaled * x).to(like.dtype)


@Fused
def round_mixture(mixed_DIJ: Tensor, target_D1J: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
    """A mixture less the mean, c, in the precision of `like`, and `c u` of the exact one."""
    return mixed_DIJ.to(like.dtype), (mixed_DIJ * target_D1J).sum(dim=0)


@Fused
def mixed_square(mixed_DIJ: Tensor, gram_DIJ: Tensor, mean_gram_DI1: Tensor) -> Tensor:
    """`c W_O W_Oᵀ (c + 2 c̄)`."""
    return (mixed_DIJ.to(gram_DIJ.dtype) * (gram_DIJ + 2 * mean_gram_DI1)).sum(dim=0)


@Fused
def mixed_slopes(
    mixed_DIJ: Tensor,
    gram_DIJ: Tensor,
    mean_gram_DI1: Tensor,
    target_D1J: Tensor,
    slope_IJ: Tensor,
    ratio_IJ: Tensor,
) -> tuple[Tensor, Tensor]:
    """The gradient of a mixture, `ṅ (u - r W_O W_Oᵀ (c + c̄))`, and `ṅ r c`."""
    dtype, mixed = mixed_DIJ.dtype, mixed_DIJ.to(gram_DIJ.dtype)
    gradient = (target_D1J - ratio_IJ * (gram_DIJ + mean_gram_DI1)) * slope_IJ
    return gradient.to(dtype), (mixed * (slope_IJ * ratio_IJ)).to(dtype)


@Fused
def sum_of_rows(mixed_DIJ: Tensor, slope_IJ: Tensor) -> Tensor:
    """`Σ_i ṅ c`, [D, J]."""
    return (mixed_DIJ * slope_IJ).sum(dim=1)


@Fused
def mean_slopes(logit_MKIJ: Tensor, logsumexp_MIJ: Tensor, x_MKIJ: Tensor) -> Tensor:
    """Mean of the gradients x of the weights under these, `Σ_k a x`."""
    return ((logit_MKIJ - logsumexp_MIJ[:, None]).exp() * x_MKIJ).sum(dim=1)


@Fused
def softmax_slopes(logit_MKIJ: Tensor, logsumexp_MIJ: Tensor, x_MKIJ: Tensor, mean_MIJ: Tensor, like: Tensor) -> Tensor:
    """The gradient of the logits, given that of the weights, in the precision of `like`."""
    weight = (logit_MKIJ - logsumexp_MIJ[:, None]).exp()
    return (weight * (x_MKIJ - mean_MIJ[:, None])).to(like.dtype)


@Fused
def cosines(numerator_IJ: Tensor, square_IJ: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Scores, inverse norms and clamped pairs: see `tiles.cosines`."""
    bound = numerator_IJ.square()
    inverse = torch.maximum(square_IJ, bound).clamp(min=SMALLEST_SQUARE).rsqrt()
    return (numerator_IJ * inverse).clamp(-1, 1), inverse, square_IJ < bound


@Fused
def score_slopes(
    gradient_IJ: Tensor, score_IJ: Tensor, inverse_norm_IJ: Tensor, clamped_IJ: Tensor
) -> tuple[Tensor, Tensor]:
    """Slope `ṅ` and ratio `r`: see `mixture_tiles.score_backward`."""
    return (gradient_IJ * inverse_norm_IJ).masked_fill(clamped_IJ, 0), score_IJ * inverse_norm_IJ


class _FusedTiles(MixtureTiles):
    """Common part of both forms."""

    def _weights(self, message_JW: Tensor) -> None:
        self._query_MJE, self._target_MJE = self._by_column(message_JW.to(self._precision))
        logit_MNJ = self._new(self._heads, self._key_MNE.shape[1], len(message_JW))
        product(logit_MNJ, self._key_MNE, self._query_MJE.transpose(1, 2), scale=1 / self._temperature)
        logit_MKIJ = self._by_token(logit_MNJ)
        self._weight_MKIJ, logsumexp_MIJ = mixing_weights(logit_MKIJ, self._key_MNE)
        self._softmax = (logit_MKIJ, logsumexp_MIJ)

    def _new(self, *shape: int, dtype: torch.dtype | None = None) -> Tensor:
        return torch.empty(shape, dtype=dtype or self._key_BMKE.dtype, device=self._key_BMKE.device)

    def _scored(self, numerator_IJ: Tensor, square_IJ: Tensor) -> Tensor:
        self._cosines_IJ = cosines(numerator_IJ, square_IJ)
        score_IJ, _, clamped_IJ = self._cosines_IJ
        self.clamped += clamped_IJ.sum()
        return score_IJ


class FusedGramTiles(_FusedTiles, WithGram):
    """`GramTiles` in few passes."""

    def open(self, rows: slice) -> None:
        super().open(rows)
        whole = self._gram_BXX[rows]
        gram_IXX = whole[:, :-1, :-1]
        self._edge_MKI1 = whole[:, :-1, -1].T.unflatten(0, (self._heads, -1))[..., None].contiguous()
        self._corner_I1 = whole[:, -1, -1:]
        self._grams_IXX = self._in_parts(gram_IXX)
        if self.gradients:
            self._gram_gradient_IXX = torch.zeros_like(self._grams_IXX[0], dtype=whole.dtype)
            self._edge_gradient_XI = self._new(self._size, len(whole)).zero_()
            self._corner_gradient_I = self._new(len(whole)).zero_()

    def close(self) -> None:
        super().close()
        if self.gradients:
            gradient_IXX = self.gradients[2][self._rows]
            gradient_IXX[:, :-1, :-1] += self._gram_gradient_IXX
            gradient_IXX[:, :-1, -1] -= self._edge_gradient_XI.T / 2
            gradient_IXX[:, -1, :-1] -= self._edge_gradient_XI.T / 2
            gradient_IXX[:, -1, -1] -= self._corner_gradient_I / 2

    def scores(self, message_JW: Tensor) -> Tensor:
        self._weights(message_JW)
        _, _, rows, columns = self._weight_MKIJ.shape
        value_MNJ = self._new(self._heads, self._tokens * rows, columns)
        product(value_MNJ, self._value_MNE, self._target_MJE.transpose(1, 2))
        gram_IXJ = self._new(rows, self._size, columns)
        self._weight_IXJ = self._weight_MKIJ.flatten(0, 1).transpose(0, 1)
        for index, part_IXX in enumerate(self._grams_IXX):
            product(gram_IXJ, part_IXX, self._weight_IXJ, add=index > 0)
        self._seen = (self._by_token(value_MNJ), gram_IXJ.unflatten(1, (self._heads, -1)), self._edge_MKI1)
        self._numerator_MIJ, self._along_MIJ, square_MIJ = gram_sums(*self._softmax, *self._seen)
        return self._scored(self._numerator_MIJ.sum(dim=0), square_MIJ.sum(dim=0) + self._corner_I1)

    def backward(self, gradient_IJ: Tensor, message_gradient_JW: Tensor) -> None:
        query_gradient_MJE, target_gradient_MJE = self._by_column(message_gradient_JW)
        slope_IJ, ratio_IJ = score_slopes(gradient_IJ, *self._cosines_IJ)
        operand_MKIJ, gamma_MKIJ, logit_gradient_MKIJ = gram_slopes(
            *self._softmax,
            *self._seen,
            self._numerator_MIJ,
            self._along_MIJ,
            slope_IJ,
            ratio_IJ,
            self._key_MNE,
        )
        gamma_XIJ, operand_MNJ = gamma_MKIJ.flatten(0, 1), operand_MKIJ.flatten(1, 2)
        weight_IJX = self._weight_IXJ.transpose(1, 2)
        product(self._gram_gradient_IXX, gamma_XIJ.transpose(0, 1), weight_IJX, add=True, scale=-0.5)
        self._edge_gradient_XI += gamma_XIJ.sum(dim=2, dtype=self._edge_gradient_XI.dtype)
        self._corner_gradient_I += (slope_IJ * ratio_IJ).sum(dim=1)
        product(self._value_gradient_MNE, operand_MNJ, self._target_MJE, add=True)
        product(target_gradient_MJE, operand_MNJ.transpose(1, 2), self._value_MNE, add=True)
        self._logit_backward(logit_gradient_MKIJ.flatten(1, 2), query_gradient_MJE)


class FusedOutputGramTiles(_FusedTiles):
    """`OutputGramTiles` in few passes."""

    def __init__(
        self, operands: Iterable[Tensor], *, temperature: float, precision: torch.dtype, gradients: bool
    ) -> None:
        rows = OutputGramRows(*operands)
        super().__init__(rows, temperature=temperature, precision=precision, gradients=gradients)
        self._out_gram_DD = rows.out_gram_DD
        self._out_gram_1DD = rows.out_gram_DD.to(precision)[None]
        self.elements = max(self._heads * self._tokens, len(rows.out_gram_DD))

    def open(self, rows: slice) -> None:
        super().open(rows)
        self._mean_ID = self._value_BMKE[rows].mean(dim=2).flatten(1)
        mean_gram_ID = self._mean_ID @ self._out_gram_DD
        self._mean_square_I1 = (mean_gram_ID * self._mean_ID).sum(dim=1, keepdim=True)
        self._mean_gram_DI1 = mean_gram_ID.T[:, :, None].contiguous()
        if self.gradients:
            self._slope_target_ID = torch.zeros_like(self._mean_ID)  # Σ_j ṅ u
            self._slope_mixed_DI = torch.zeros_like(self._mean_ID.T)  # Σ_j ṅ r c
            self._slope_I1 = torch.zeros_like(self._mean_square_I1)  # Σ_j ṅ r

    def close(self) -> None:
        if self.gradients:
            seen_ID = self._slope_mixed_DI.T + self._slope_I1 * self._mean_ID
            mean_gradient_ID = self._slope_target_ID - seen_ID @ self._out_gram_DD
            of_token_MIE = mean_gradient_ID.unflatten(1, (self._heads, -1)).transpose(0, 1) / self._tokens
            self._by_token(self._value_gradient_MNE).add_(of_token_MIE[:, None])
            # Σ γ (c + c̄)(c + c̄)ᵀ less Σ γ c cᵀ, which tiles have added
            outer_DD = (self._slope_mixed_DI.T + self._slope_I1 * self._mean_ID / 2).T @ self._mean_ID
            self.gradients[2].sub_((outer_DD + outer_DD.T) / 2)
        super().close()

    def scores(self, message_JW: Tensor) -> Tensor:
        self._weights(message_JW)
        (dim, _, _), columns = self._mean_gram_DI1.shape, len(message_JW)
        rows = len(self._mean_ID)
        self._mixed_DIJ = self._new(dim, rows, columns)
        value_MKIE = self._by_token(self._value_MNE)
        for head, mixed_EIJ in enumerate(self._mixed_DIJ.unflatten(0, (self._heads, -1))):
            weight_IKJ = self._weight_MKIJ[head].transpose(0, 1)
            product(mixed_EIJ.transpose(0, 1), value_MKIE[head].permute(1, 2, 0), weight_IKJ)
        target_JD = self._target_MJE.transpose(0, 1).flatten(1).to(self._mixed_DIJ.dtype)
        self._target_D1J = target_JD.T[:, None]
        self._rounded_DIJ, numerator_IJ = round_mixture(self._mixed_DIJ, self._target_D1J, self._key_MNE)
        self._gram_DIJ = self._new(dim, rows, columns)
        product(self._gram_DIJ.view(1, dim, -1), self._out_gram_1DD, self._rounded_DIJ.view(1, dim, -1))
        square_IJ = mixed_square(self._rounded_DIJ, self._gram_DIJ, self._mean_gram_DI1)
        return self._scored(numerator_IJ.addmm_(self._mean_ID, target_JD.T), square_IJ + self._mean_square_I1)

    def backward(self, gradient_IJ: Tensor, message_gradient_JW: Tensor) -> None:
        query_gradient_MJE, target_gradient_MJE = self._by_column(message_gradient_JW)
        slope_IJ, ratio_IJ = score_slopes(gradient_IJ, *self._cosines_IJ)
        gradient_DIJ, gamma_DIJ = mixed_slopes(
            self._rounded_DIJ, self._gram_DIJ, self._mean_gram_DI1, self._target_D1J, slope_IJ, ratio_IJ
        )
        mixed_1ND = self._rounded_DIJ.flatten(1).T[None]
        product(self.gradients[2][None], gamma_DIJ.flatten(1)[None], mixed_1ND, add=True, scale=-0.5)
        self._slope_mixed_DI += gamma_DIJ.sum(dim=2, dtype=self._slope_mixed_DI.dtype)
        self._slope_I1 += (slope_IJ * ratio_IJ).sum(dim=1, keepdim=True)
        self._slope_target_ID.addmm_(slope_IJ, self._target_D1J[:, 0].T)
        target_gradient_JD = sum_of_rows(self._mixed_DIJ, slope_IJ).T.addmm_(slope_IJ.T, self._mean_ID)
        target_gradient_MJE += target_gradient_JD.unflatten(1, (self._heads, -1)).transpose(0, 1)

        x_MNJ = self._new(*self._weight_MKIJ.flatten(1, 2).shape)
        x_MKIJ, value_MKIE = self._by_token(x_MNJ), self._by_token(self._value_MNE)
        value_gradient_MKIE = self._by_token(self._value_gradient_MNE)
        for head, gradient_EIJ in enumerate(gradient_DIJ.unflatten(0, (self._heads, -1))):
            gradient_IEJ, weight_IKJ = gradient_EIJ.transpose(0, 1), self._weight_MKIJ[head].transpose(0, 1)
            value_gradient_IKE = value_gradient_MKIE[head].transpose(0, 1)
            product(value_gradient_IKE, weight_IKJ, gradient_IEJ.transpose(1, 2), add=True)
            product(x_MKIJ[head].transpose(0, 1), value_MKIE[head].transpose(0, 1), gradient_IEJ)
        mean_MIJ = mean_slopes(*self._softmax, x_MKIJ)  # no compiler fuses it with what follows
        logit_gradient_MKIJ = softmax_slopes(*self._softmax, x_MKIJ, mean_MIJ, self._key_MNE)
        self._logit_backward(logit_gradient_MKIJ.flatten(1, 2), query_gradient_MJE)
