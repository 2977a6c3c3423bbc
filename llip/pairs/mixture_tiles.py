"""The two ways of scoring mixtures: `GramTiles` and `OutputGramTiles` (see `tiles`, whose axes these are)."""

from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import Tensor

from llip.pairs.tiles import Cosines, Workspace, centred_softmax_, cosines, product


class GramRows(NamedTuple):
    """Keys, values, and the Gram matrix of the projections of the values less their mean over the tokens, and of it."""

    key_BMKE: Tensor
    value_BMKE: Tensor
    gram_BXX: Tensor


class OutputGramRows(NamedTuple):
    """Keys, values, and `W_O W_Oᵀ`, which is the same for every row."""

    key_BMKE: Tensor
    value_BMKE: Tensor
    out_gram_DD: Tensor


class MixtureTiles:
    """The part that both forms share: keys and values in the layout of products, mixing weights and their gradient.

    A column's message is `(q, u)`: its query and `u = W_O t̂`, the target as the values see it.
    """

    def __init__(
        self, rows: GramRows | OutputGramRows, *, temperature: float, precision: torch.dtype, gradients: bool
    ) -> None:
        self._key_BMKE, self._value_BMKE, _ = rows
        self._temperature = temperature
        self._precision = precision
        self.gradients = tuple(torch.zeros_like(operand) for operand in rows) if gradients else ()
        self.clamped = torch.zeros((), dtype=torch.int64, device=rows.key_BMKE.device)
        self._workspace = Workspace(rows.key_BMKE)
        _, self._heads, self._tokens, self._width = rows.key_BMKE.shape

    def open(self, rows: slice) -> None:
        self._rows = rows
        self._key_MNE = self._by_head(self._key_BMKE[rows])
        self._value_MNE = self._by_head(self._value_BMKE[rows])
        if self.gradients:
            self._key_gradient_MNE = torch.zeros_like(self._key_MNE, dtype=self._key_BMKE.dtype)
            self._value_gradient_MNE = torch.zeros_like(self._key_gradient_MNE)

    def close(self) -> None:
        if self.gradients:
            key_BMKE, value_BMKE, _ = self.gradients
            key_BMKE[self._rows] += self._by_row(self._key_gradient_MNE)
            value_BMKE[self._rows] += self._by_row(self._value_gradient_MNE)

    def _by_head(self, tensor_IMKE: Tensor) -> Tensor:
        """[I, M, K, E] as [M, K·I, E]: one matrix for each head."""
        return tensor_IMKE.permute(1, 2, 0, 3).to(self._precision).contiguous().flatten(1, 2)

    def _by_row(self, tensor_MNE: Tensor) -> Tensor:
        """[M, K·I, E] as [I, M, K, E]."""
        return self._by_token(tensor_MNE).permute(2, 0, 1, 3)

    def _by_token(self, tensor_MN: Tensor) -> Tensor:
        """[M, K·I, ...] as [M, K, I, ...]."""
        return tensor_MN.unflatten(1, (self._tokens, -1))

    def _softmax_over_tokens(self, logit_MNJ: Tensor) -> None:
        centred_softmax_(logit_MNJ.view(self._heads, self._tokens, -1))

    def _by_column(self, message_JW: Tensor) -> tuple[Tensor, Tensor]:
        """Queries and targets [M, J, E] in a message (or in its gradient), without a copy."""
        query_JME, target_JME = message_JW.unflatten(1, (2, self._heads, self._width)).unbind(1)
        return query_JME.transpose(0, 1), target_JME.transpose(0, 1)

    def _mix(self, weight_MNJ: Tensor, message_JW: Tensor) -> None:
        """Fill in the centred mixing weights of the open rows by these columns."""
        self._query_MJE, self._target_MJE = self._by_column(message_JW.to(self._precision))
        product(weight_MNJ, self._key_MNE, self._query_MJE.transpose(1, 2), scale=1 / self._temperature)
        self._softmax_over_tokens(weight_MNJ)

    def _finish(self, numerator_IJ: Tensor, square_IJ: Tensor) -> Tensor:
        self._cosines = cosines(numerator_IJ, square_IJ)
        self.clamped += self._cosines.clamped_IJ.sum()
        return self._cosines.score_IJ

    def _logit_backward(self, gradient_MNJ: Tensor, query_gradient_MJE: Tensor) -> None:
        """Add the gradients of keys and queries, given those of the logits."""
        scale = 1 / self._temperature
        gradient_MNJ = gradient_MNJ.to(self._precision)
        product(self._key_gradient_MNE, gradient_MNJ, self._query_MJE, add=True, scale=scale)
        product(query_gradient_MJE, gradient_MNJ.transpose(1, 2), self._key_MNE, add=True, scale=scale)


def _score_backward(gradient_IJ: Tensor, cosines: Cosines) -> tuple[Tensor, Tensor]:
    """Slope `ṅ = dL/ds / ρ`, 0 for a clamped pair, and ratio `r = s / ρ`: `dL = ṅ (dn - r d(ρ²) / 2)`."""
    slope_IJ = (gradient_IJ * cosines.inverse_norm_IJ).masked_fill_(cosines.clamped_IJ, 0)
    return slope_IJ, cosines.score_IJ * cosines.inverse_norm_IJ


STRIP = 64
"""Rows of a triangular matrix that are multiplied at once, from its diagonal on."""


class WithGram(MixtureTiles):
    """The operands of the form with a Gram matrix a row."""

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
        self.elements = self._size = self._heads * self._tokens

    def _in_parts(self, gram_IXX: Tensor) -> list[Tensor]:
        """A Gram matrix in the precision of products; where it is split, the remainder too."""
        high_IXX = gram_IXX.to(self._precision, memory_format=torch.contiguous_format)
        return [high_IXX, (gram_IXX - high_IXX).to(self._precision)] if self._split else [high_IXX]


class GramTiles(WithGram):
    """Scores of mixtures in `4KD + 2(MK)²` FLOPs a pair: for fewer tokens than a head is wide.

    Without gradients a triangular matrix takes the place of the Gram matrix: about `(MK)²` FLOPs instead of `2(MK)²`.
    """

    def open(self, rows: slice) -> None:
        super().open(rows)
        gram_IXX = self._gram_BXX[rows]
        if not self.gradients:  # `DᵀGD` needs the upper triangle alone, twice what is off the diagonal
            gram_IXX = torch.triu(2 * gram_IXX) - torch.diag_embed(gram_IXX.diagonal(dim1=1, dim2=2))
        self._grams_IXX = self._in_parts(gram_IXX)

    def scores(self, message_JW: Tensor) -> Tensor:
        size, columns = self._gram_BXX.shape[1], len(message_JW)
        rows = self._key_MNE.shape[1] // self._tokens
        # The last of the X rows of weights is 1: it meets the projected mean.
        self._weight_XIJ = self._workspace.get("weight", size, rows, columns)
        self._weight_XIJ[-1] = 1
        self._mix(self._weight_XIJ[:-1].view(self._heads, -1, columns), message_JW)
        self._value_MNJ = self._workspace.get("value", self._heads, self._tokens * rows, columns)
        product(self._value_MNJ, self._value_MNE, self._target_MJE.transpose(1, 2))
        gram_IXJ = self._workspace.get("gram", rows, size, columns)
        weight_IXJ = self._weight_XIJ.to(self._precision).transpose(0, 1)
        strip = size if self.gradients else STRIP
        for index, part_IXX in enumerate(self._grams_IXX):
            for start in range(0, size, strip):
                rows_of_strip = slice(start, start + strip)
                product(
                    gram_IXJ[:, rows_of_strip],
                    part_IXX[:, rows_of_strip, start:],
                    weight_IXJ[:, start:],
                    add=index > 0,
                )
        self._gram_XIJ = gram_IXJ.transpose(0, 1)

        value_MKIJ = self._by_token(self._value_MNJ)
        self._numerator_MIJ = self._head_sums(value_MKIJ) + value_MKIJ.mean(dim=1)
        self._square_MIJ = self._head_sums(self._gram_XIJ[:-1].unflatten(0, (self._heads, -1)))
        return self._finish(self._numerator_MIJ.sum(dim=0), self._square_MIJ.sum(dim=0) + self._gram_XIJ[-1])

    def _head_sums(self, factor_MKIJ: Tensor) -> Tensor:
        """`Σ_k D x` of each head."""
        weight_MKIJ = self._weight_XIJ[:-1].view(factor_MKIJ.shape)
        return torch.mul(weight_MKIJ, factor_MKIJ, out=self._workspace.get("term", *factor_MKIJ.shape)).sum(dim=1)

    def backward(self, gradient_IJ: Tensor, message_gradient_JW: Tensor) -> None:
        gram_gradient_IXX = self.gradients[2][self._rows]
        query_gradient_MJE, target_gradient_MJE = self._by_column(message_gradient_JW)
        slope_IJ, ratio_IJ = _score_backward(gradient_IJ, self._cosines)

        # The gradient of a weight a is ṅ x, x = w - r (G D + b). Less the mean of x under a, that of a logit is ṅ a x.
        x_MKIJ = self._by_token(self._value_MNJ)
        x_MKIJ.addcmul_(ratio_IJ, self._gram_XIJ[:-1].unflatten(0, (self._heads, -1)), value=-1)
        x_MKIJ -= torch.addcmul(self._numerator_MIJ, ratio_IJ, self._square_MIJ, value=-1)[:, None]

        scaled_XIJ = torch.mul(self._weight_XIJ, slope_IJ, out=self._workspace.get("term", *self._weight_XIJ.shape))
        # A compiler places buffers itself and cannot write the transposed product into one.
        buffer_IXJ = None if torch.compiler.is_compiling() else self._gram_XIJ.transpose(0, 1)
        gamma_IXJ = torch.mul(scaled_XIJ.transpose(0, 1), ratio_IJ[:, None], out=buffer_IXJ).to(self._precision)
        weight_IJX = self._weight_XIJ.to(self._precision).permute(1, 2, 0)
        product(gram_gradient_IXX, gamma_IXJ, weight_IJX, add=True, scale=-0.5)

        scaled_MNJ = scaled_XIJ[:-1].add_(slope_IJ / self._tokens).view(self._value_MNJ.shape)  # ṅ a = ṅ D + ṅ / K
        operand_MNJ = scaled_MNJ.to(self._precision)
        product(self._value_gradient_MNE, operand_MNJ, self._target_MJE, add=True)
        product(target_gradient_MJE, operand_MNJ.transpose(1, 2), self._value_MNE, add=True)
        self._logit_backward(self._value_MNJ.mul_(scaled_MNJ), query_gradient_MJE)


class OutputGramTiles(MixtureTiles):
    """Scores of mixtures in `4KD + 2D²` products a pair, with nothing to prepare: for many tokens or few columns.

    N = I·K here, as each row and head is a product of its own, R = M·I of them: PyTorch hands many small products to
    the library at once only where their results are contiguous.
    """

    def __init__(
        self, operands: Iterable[Tensor], *, temperature: float, precision: torch.dtype, gradients: bool
    ) -> None:
        rows = OutputGramRows(*operands)
        super().__init__(rows, temperature=temperature, precision=precision, gradients=gradients)
        self._out_gram_1DD = rows.out_gram_DD.to(precision)[None]
        self.elements = max(self._heads * self._tokens, len(rows.out_gram_DD))

    def open(self, rows: slice) -> None:
        super().open(rows)
        self._mean_MEI1 = self._value_BMKE[rows].mean(dim=2).permute(1, 2, 0)[..., None]

    def _by_head(self, tensor_IMKE: Tensor) -> Tensor:
        """[I, M, K, E] as [M, I·K, E]."""
        return tensor_IMKE.transpose(0, 1).to(self._precision).contiguous().flatten(1, 2)

    def _by_row(self, tensor_MNE: Tensor) -> Tensor:
        """[M, I·K, E] as [I, M, K, E]."""
        return tensor_MNE.unflatten(1, (-1, self._tokens)).transpose(0, 1)

    def _by_product(self, tensor_MN: Tensor) -> Tensor:
        """[M, I·K, ...] as [R, K, ...]."""
        return tensor_MN.view(-1, self._tokens, *tensor_MN.shape[2:])

    def _softmax_over_tokens(self, logit_MNJ: Tensor) -> None:
        centred_softmax_(self._by_product(logit_MNJ))

    def scores(self, message_JW: Tensor) -> Tensor:
        columns, (_, dim, _) = len(message_JW), self._out_gram_1DD.shape
        rows = self._mean_MEI1.shape[2]
        self._weight_MNJ = self._workspace.get("weight", self._heads, rows * self._tokens, columns)
        self._mix(self._weight_MNJ, message_JW)
        deviation_REJ = self._workspace.get("mixed by row", self._heads * rows, self._width, columns)
        weight_RKJ = self._by_product(self._weight_MNJ.to(self._precision))
        product(deviation_REJ, self._by_product(self._value_MNE).transpose(1, 2), weight_RKJ)
        deviation_MEIJ = deviation_REJ.unflatten(0, (self._heads, -1)).transpose(1, 2)
        buffer_MEIJ = self._buffer("mixed", *deviation_MEIJ.shape)
        self._mixed_DIJ = torch.add(deviation_MEIJ, self._mean_MEI1, out=buffer_MEIJ).contiguous().flatten(0, 1)

        self._gram_DIJ = self._workspace.get("metric", dim, rows, columns)
        mixed_1DN = self._mixed_DIJ.to(self._precision).view(1, dim, -1)
        product(self._gram_DIJ.view(mixed_1DN.shape), self._out_gram_1DD, mixed_1DN)
        self._target_D1J = self._target_MJE.transpose(1, 2).flatten(0, 1).to(self._mixed_DIJ.dtype)[:, None]
        return self._finish(self._sum(self._target_D1J), self._sum(self._gram_DIJ))

    def _buffer(self, name: str, *shape: int) -> Tensor | None:
        """Memory of the workspace; none for a compiler, which places buffers itself and writes nothing transposed."""
        return None if torch.compiler.is_compiling() else self._workspace.get(name, *shape)

    def _sum(self, factor_DIJ: Tensor) -> Tensor:
        term_DIJ = self._workspace.get("term", *self._mixed_DIJ.shape)
        return torch.mul(self._mixed_DIJ, factor_DIJ, out=term_DIJ).sum(dim=0)

    def backward(self, gradient_IJ: Tensor, message_gradient_JW: Tensor) -> None:
        query_gradient_MJE, target_gradient_MJE = self._by_column(message_gradient_JW)
        slope_IJ, ratio_IJ = _score_backward(gradient_IJ, self._cosines)

        scaled_DIJ = torch.mul(self._mixed_DIJ, slope_IJ, out=self._workspace.get("term", *self._mixed_DIJ.shape))
        target_gradient_MJE += scaled_DIJ.sum(dim=1).unflatten(0, (self._heads, -1)).transpose(1, 2)
        gamma_DIJ = scaled_DIJ.mul_(ratio_IJ).to(self._precision)
        mixed_DIJ = self._mixed_DIJ.to(self._precision)
        gram_gradient_1DD = self.gradients[2][None]
        product(gram_gradient_1DD, gamma_DIJ.flatten(1)[None], mixed_DIJ.flatten(1).T[None], add=True, scale=-0.5)

        # The gradient of a mixture: ṅ (u - r W_O W_Oᵀ c).
        gradient_DIJ = torch.addcmul(self._target_D1J, ratio_IJ, self._gram_DIJ, value=-1, out=self._gram_DIJ)
        gradient_MIEJ = gradient_DIJ.unflatten(0, (self._heads, -1)).transpose(1, 2)
        buffer_MIEJ = self._buffer("mixed by row", *gradient_MIEJ.shape)
        gradient_REJ = torch.mul(gradient_MIEJ, slope_IJ[:, None], out=buffer_MIEJ).contiguous().flatten(0, 1)
        value_gradient_RKE = self._by_product(self._value_gradient_MNE)
        value_gradient_RKE += gradient_REJ.sum(dim=2)[:, None] / self._tokens
        gradient_REJ = gradient_REJ.to(self._precision)
        weight_RKJ = self._by_product(self._weight_MNJ)
        product(value_gradient_RKE, weight_RKJ.to(self._precision), gradient_REJ.transpose(1, 2), add=True)
        x_RKJ = self._workspace.get("x", *weight_RKJ.shape)
        product(x_RKJ, self._by_product(self._value_MNE), gradient_REJ)

        weight_RKJ += 1 / self._tokens
        term_RKJ = torch.mul(weight_RKJ, x_RKJ, out=self._workspace.get("logit", *x_RKJ.shape))
        x_RKJ -= term_RKJ.sum(dim=1, keepdim=True)
        self._logit_backward(x_RKJ.mul_(weight_RKJ).view(self._weight_MNJ.shape), query_gradient_MJE)
