"""The two ways of scoring mixtures: `GramTiles` and `MetricTiles` (see `tiles`, whose axes these are)."""

from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import Tensor

from llip.model.tiles import Cosines, Workspace, centred_softmax_, cosines, product


class GramRows(NamedTuple):
    """Keys, values less their mean over the tokens, that mean, and the Gram matrix of the projections of both."""

    key_BMKE: Tensor
    centred_BMKE: Tensor
    mean_BD: Tensor
    gram_BXX: Tensor


class MetricRows(NamedTuple):
    """Keys, values less their mean over the tokens, that mean, and `W_O W_Oᵀ`, which is the same for every row."""

    key_BMKE: Tensor
    centred_BMKE: Tensor
    mean_BD: Tensor
    metric_DD: Tensor


class _MixtureTiles:
    """What both have in common: keys and values in the layout of products, mixing weights and their gradient.

    A column's message is `(q, u)`: its query and `u = W_O t̂`, the target as the values see it.
    """

    def __init__(
        self, rows: GramRows | MetricRows, *, temperature: float, precision: torch.dtype, gradients: bool
    ) -> None:
        self._operands = rows
        self._temperature = temperature
        self._precision = precision
        self.gradients = tuple(torch.zeros_like(operand) for operand in rows) if gradients else ()
        self.held = torch.zeros((), dtype=torch.int64, device=rows.key_BMKE.device)
        self._workspace = Workspace(rows.key_BMKE, rows.key_BMKE.dtype)
        _, self._heads, self._tokens, self._width = rows.key_BMKE.shape

    def open(self, rows: slice) -> None:
        self._rows = rows
        self._key_MNE = self._by_head(self._operands.key_BMKE[rows])
        self._centred_MNE = self._by_head(self._operands.centred_BMKE[rows])
        self._mean_ID = self._operands.mean_BD[rows].to(self._precision)
        if self.gradients:
            self._key_gradient_MNE = torch.zeros_like(self._key_MNE, dtype=self._operands.key_BMKE.dtype)
            self._centred_gradient_MNE = torch.zeros_like(self._key_gradient_MNE)

    def close(self) -> None:
        if self.gradients:
            for total_BMKE, gradient_MNE in zip(
                self.gradients, (self._key_gradient_MNE, self._centred_gradient_MNE), strict=False
            ):
                gradient_MKIE = gradient_MNE.unflatten(1, (self._tokens, -1))
                total_BMKE[self._rows] += gradient_MKIE.permute(2, 0, 1, 3)

    def _by_head(self, tensor_IMKE: Tensor) -> Tensor:
        """[I, M, K, E] as [M, K·I, E]: one matrix for each head."""
        return tensor_IMKE.permute(1, 2, 0, 3).to(self._precision).contiguous().flatten(1, 2)

    def _by_column(self, message_JW: Tensor) -> tuple[Tensor, Tensor]:
        """Queries and targets [M, J, E] in a message (or in its gradient), without a copy."""
        query_JME, target_JME = message_JW.unflatten(1, (2, self._heads, self._width)).unbind(1)
        return query_JME.transpose(0, 1), target_JME.transpose(0, 1)

    def _mix(self, weight_MNJ: Tensor, message_JW: Tensor) -> None:
        """Fill in the centred mixing weights of the open rows by these columns."""
        self._query_MJE, self._target_MJE = self._by_column(message_JW.to(self._precision))
        product(weight_MNJ, self._key_MNE, self._query_MJE.transpose(1, 2), scale=1 / self._temperature)
        centred_softmax_(weight_MNJ.view(self._heads, self._tokens, -1))

    def _logit_backward(self, gradient_MNJ: Tensor, query_gradient_MJE: Tensor) -> None:
        """Add the gradients of keys and queries, given those of the logits."""
        scale = 1 / self._temperature
        gradient_MNJ = gradient_MNJ.to(self._precision)
        product(self._key_gradient_MNE, gradient_MNJ, self._query_MJE, add=True, scale=scale)
        product(query_gradient_MJE, gradient_MNJ.transpose(1, 2), self._key_MNE, add=True, scale=scale)

    def _finish(self, numerator_IJ: Tensor, square_IJ: Tensor) -> Tensor:
        self._cosines = cosines(numerator_IJ, square_IJ)
        self.held += self._cosines.held_IJ.sum()
        return self._cosines.score_IJ


def _score_backward(gradient_IJ: Tensor, cosines: Cosines) -> tuple[Tensor, Tensor]:
    """`ds/dn · ds` and `s / ρ`: with them `dL = ṅ (dn - (s/ρ) dρ²/2)`."""
    slope_IJ = (gradient_IJ * cosines.inverse_norm_IJ).masked_fill_(cosines.held_IJ, 0)
    return slope_IJ, cosines.score_IJ * cosines.inverse_norm_IJ


class GramTiles(_MixtureTiles):
    """Scores of mixtures in `4KD + (MK)²` products a pair: the choice for fewer tokens than a head is wide."""

    def __init__(
        self,
        operands: Iterable[Tensor],
        *,
        temperature: float,
        precision: torch.dtype,
        gradients: bool,
        split: bool = False,
    ) -> None:
        """`split` keeps the Gram matrix in two parts, high and low, where products are of lower precision."""
        rows = GramRows(*operands)
        super().__init__(rows, temperature=temperature, precision=precision, gradients=gradients)
        self._gram_BXX = rows.gram_BXX
        self._split = split and precision != rows.gram_BXX.dtype
        self.elements = rows.gram_BXX.shape[1]

    def open(self, rows: slice) -> None:
        super().open(rows)
        gram_IXX = self._gram_BXX[rows]
        self._grams_IXX = [gram_IXX.to(self._precision)]
        if self._split:
            self._grams_IXX.append((gram_IXX - self._grams_IXX[0]).to(self._precision))

    def scores(self, message_JW: Tensor) -> Tensor:
        heads, tokens, rows, columns = self._heads, self._tokens, len(self._mean_ID), len(message_JW)
        flat = (heads, tokens * rows, columns)
        weight_XIJ = self._workspace.get("weight", heads * tokens + 1, rows, columns)
        value_XIJ = self._workspace.get("value", heads * tokens + 1, rows, columns)
        gram_IXJ = self._workspace.get("gram", rows, heads * tokens + 1, columns)
        term_XIJ = self._workspace.get("term", heads * tokens + 1, rows, columns)

        self._mix(weight_XIJ[:-1].view(flat), message_JW)
        weight_XIJ[-1] = 1
        product(value_XIJ[:-1].view(flat), self._centred_MNE, self._target_MJE.transpose(1, 2))
        target_JD = self._target_MJE.transpose(0, 1).flatten(1)
        product(value_XIJ[-1:], self._mean_ID[None], target_JD.T[None])
        operand_IXJ = weight_XIJ.to(self._precision).transpose(0, 1)
        for index, part_IXX in enumerate(self._grams_IXX):
            product(gram_IXJ, part_IXX, operand_IXJ, add=index > 0)

        self._weight_XIJ, self._value_XIJ, self._gram_XIJ, self._term_XIJ = (
            weight_XIJ,
            value_XIJ,
            gram_IXJ.transpose(0, 1),
            term_XIJ,
        )
        numerator_MIJ, numerator_IJ = self._head_sums(value_XIJ)
        square_MIJ, square_IJ = self._head_sums(self._gram_XIJ)
        self._numerator_MIJ, self._square_MIJ = numerator_MIJ, square_MIJ
        return self._finish(numerator_IJ, square_IJ)

    def _head_sums(self, factor_XIJ: Tensor) -> tuple[Tensor, Tensor]:
        """`Σ_k D x` of each head, and the sum over heads and the last row."""
        term_XIJ = torch.mul(self._weight_XIJ, factor_XIJ, out=self._term_XIJ)
        head_MIJ = term_XIJ[:-1].unflatten(0, (self._heads, self._tokens)).sum(dim=1)
        return head_MIJ, head_MIJ.sum(dim=0).add_(term_XIJ[-1])

    def backward(self, gradient_IJ: Tensor, message_gradient_JW: Tensor) -> None:
        _, _, mean_gradient_BD, gram_gradient_BXX = self.gradients
        query_gradient_MJE, target_gradient_MJE = self._by_column(message_gradient_JW)
        heads, tokens, rows, columns = self._heads, self._tokens, *gradient_IJ.shape
        flat = (heads, tokens * rows, columns)
        slope_IJ, ratio_IJ = _score_backward(gradient_IJ, self._cosines)

        # The gradient of the weights is ṅ x, x = w - (s/ρ) (G D + b). Its mean under them comes from the sums by head.
        x_XIJ = self._value_XIJ.addcmul_(ratio_IJ, self._gram_XIJ, value=-1)
        x_MKIJ = x_XIJ[:-1].unflatten(0, (heads, tokens))
        x_MKIJ -= torch.addcmul(self._numerator_MIJ, ratio_IJ, self._square_MIJ, value=-1)[:, None]

        scaled_XIJ = torch.mul(self._weight_XIJ, slope_IJ, out=self._term_XIJ)
        operand_XIJ = scaled_XIJ.to(self._precision)
        operand_MNJ = operand_XIJ[:-1].view(flat)
        product(self._centred_gradient_MNE, operand_MNJ, self._target_MJE, add=True)
        product(target_gradient_MJE, operand_MNJ.transpose(1, 2), self._centred_MNE, add=True)
        slope_1IJ = operand_XIJ[-1:]
        target_JD = self._target_MJE.transpose(0, 1).flatten(1)
        product(mean_gradient_BD[self._rows][None], slope_1IJ, target_JD[None], add=True)
        product(
            message_gradient_JW[None, :, heads * self._width :],
            slope_1IJ.transpose(1, 2),
            self._mean_ID[None],
            add=True,
        )

        gamma_XIJ = torch.mul(scaled_XIJ, ratio_IJ, out=self._gram_XIJ).to(self._precision)
        weight_IJX = self._weight_XIJ.to(self._precision).permute(1, 2, 0)
        product(gram_gradient_BXX[self._rows], gamma_XIJ.transpose(0, 1), weight_IJX, add=True, scale=-0.5)

        scaled_XIJ[:-1] += slope_IJ / tokens  # ṅ a = ṅ D + ṅ / K
        logit_gradient_XIJ = x_XIJ[:-1].mul_(scaled_XIJ[:-1])
        self._logit_backward(logit_gradient_XIJ.view(flat), query_gradient_MJE)


class MetricTiles(_MixtureTiles):
    """Scores of mixtures in `4KD + 2D²` products a pair, with nothing to prepare: for many tokens or few columns."""

    def __init__(
        self, operands: Iterable[Tensor], *, temperature: float, precision: torch.dtype, gradients: bool
    ) -> None:
        rows = MetricRows(*operands)
        super().__init__(rows, temperature=temperature, precision=precision, gradients=gradients)
        self._metric_DD = rows.metric_DD.to(precision)
        self.elements = max(self._heads * self._tokens, len(rows.metric_DD))

    def scores(self, message_JW: Tensor) -> Tensor:
        heads, tokens, rows, columns = self._heads, self._tokens, len(self._mean_ID), len(message_JW)
        dim = heads * self._width
        self._weight_MNJ = self._workspace.get("weight", heads, tokens * rows, columns)
        mixed_DIJ = self._workspace.get("mixed", dim, rows, columns)
        metric_DIJ = self._workspace.get("metric", dim, rows, columns)
        term_DIJ = self._workspace.get("term", dim, rows, columns)

        self._mix(self._weight_MNJ, message_JW)
        weight_MKIJ = self._weight_MNJ.to(self._precision).unflatten(1, (tokens, rows))
        centred_MKIE = self._centred_MNE.unflatten(1, (tokens, rows))
        for head, mixed_EIJ in enumerate(mixed_DIJ.unflatten(0, (heads, -1))):
            product(mixed_EIJ.transpose(0, 1), centred_MKIE[head].permute(1, 2, 0), weight_MKIJ[head].transpose(0, 1))
        mixed_DIJ += self._mean_ID.T[:, :, None]
        product(metric_DIJ.view(1, dim, -1), self._metric_DD[None], mixed_DIJ.to(self._precision).view(1, dim, -1))

        self._mixed_DIJ, self._metric_DIJ, self._term_DIJ = mixed_DIJ, metric_DIJ, term_DIJ
        self._target_D1J = self._target_MJE.transpose(1, 2).flatten(0, 1).to(mixed_DIJ.dtype).contiguous()[:, None]
        numerator_IJ = torch.mul(mixed_DIJ, self._target_D1J, out=term_DIJ).sum(dim=0)
        return self._finish(numerator_IJ, torch.mul(mixed_DIJ, metric_DIJ, out=term_DIJ).sum(dim=0))

    def backward(self, gradient_IJ: Tensor, message_gradient_JW: Tensor) -> None:
        _, _, mean_gradient_BD, metric_gradient_DD = self.gradients
        query_gradient_MJE, _ = self._by_column(message_gradient_JW)
        heads, tokens, rows, columns = self._heads, self._tokens, *gradient_IJ.shape
        dim = heads * self._width
        slope_IJ, ratio_IJ = _score_backward(gradient_IJ, self._cosines)

        scaled_DIJ = torch.mul(self._mixed_DIJ, slope_IJ, out=self._term_DIJ)
        message_gradient_JW[:, dim:] += scaled_DIJ.sum(dim=1).T
        gamma_DN = scaled_DIJ.mul_(ratio_IJ).to(self._precision).view(1, dim, -1)
        mixed_DN = self._mixed_DIJ.to(self._precision).view(1, dim, -1)
        product(metric_gradient_DD[None], gamma_DN, mixed_DN.transpose(1, 2), add=True, scale=-0.5)

        # The gradient of the mixture, ṅ (u - (s/ρ) W_O W_Oᵀ c).
        gradient_DIJ = torch.addcmul(self._target_D1J, ratio_IJ, self._metric_DIJ, value=-1, out=self._metric_DIJ)
        gradient_DIJ *= slope_IJ
        mean_gradient_BD[self._rows] += gradient_DIJ.sum(dim=2).T

        operand_MEIJ = gradient_DIJ.to(self._precision).unflatten(0, (heads, -1))
        weight_MKIJ = self._weight_MNJ.unflatten(1, (tokens, rows))
        operand_MKIJ = weight_MKIJ.to(self._precision)
        centred_MKIE = self._centred_MNE.unflatten(1, (tokens, rows))
        centred_gradient_MKIE = self._centred_gradient_MNE.unflatten(1, (tokens, rows))
        logit_MKIJ = self._workspace.get("logit", heads, tokens, rows, columns)
        for head, operand_IEJ in enumerate(operand_MEIJ.transpose(1, 2)):
            product(
                centred_gradient_MKIE[head].transpose(0, 1),
                operand_MKIJ[head].transpose(0, 1),
                operand_IEJ.transpose(1, 2),
                add=True,
            )
            product(logit_MKIJ[head].transpose(0, 1), centred_MKIE[head].transpose(0, 1), operand_IEJ)
        weight_MKIJ += 1 / tokens
        term_MKIJ = torch.mul(weight_MKIJ, logit_MKIJ, out=self._workspace.get("logit_term", *logit_MKIJ.shape))
        logit_MKIJ -= term_MKIJ.sum(dim=1, keepdim=True)
        logit_MKIJ *= weight_MKIJ
        self._logit_backward(logit_MKIJ.flatten(1, 2), query_gradient_MJE)
