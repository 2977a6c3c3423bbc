"""Distillation from a teacher's stored embeddings (MobileCLIP, arXiv 2311.17049, after DataCompDR).

    L = (1 - λ) L_contrastive + λ ½ (KL(P ‖ Q) + KL(Pᵀ ‖ Qᵀ)) / B
    P_ij = softmax_j(s û_i · v̂_j)       Q_ij = softmax_j(x_ij)

u and v are the teacher's image and caption embeddings, s its scale, and x the student's own logits; the second term is
over columns. A bias cancels. The teacher's logits are made tile by tile like the student's, so nothing of the number of
pairs is kept; its columns travel between ranks as an attachment of the student's.

Axes: I rows of a tile · J columns of a tile · B images of a rank · C captions of an image · R rows of a rank ·
T captions of a rank · D width of the teacher's embeddings · A width of an attachment.
"""

from typing import NamedTuple

import torch
from torch import Tensor


class Teacher(NamedTuple):
    """Stored embeddings of a rank's images and of their captions, caption-major; they need not be of unit length."""

    image_BD: Tensor
    caption_TD: Tensor
    logit_scale: float
    """Factor of the teacher's cosines."""


class Taught(NamedTuple):
    """The teacher, laid out over the rows and columns of the student's pairs."""

    unit_RD: Tensor
    """Unit vectors of the rows."""
    row_logsumexp_CR: Tensor
    """Log-sum-exp of each row's logits with all columns, over all ranks, by caption of the columns."""
    attached_CBA: Tensor
    """Attachment of the columns: their log-sum-exps by caption of the rows, and their unit vectors."""
    logit_scale: float

    def tile(self, rows: slice, captions: tuple[int, int], attached_JA: Tensor) -> "TaughtTile":
        """The teacher's logits of some rows with the columns of an attachment.

        `captions` are those of the rows and of the columns.
        """
        row_caption, column_caption = captions
        unit_JD = attached_JA[:, -self.unit_RD.shape[1] :]
        return TaughtTile(
            (self.unit_RD[rows] @ unit_JD.T).mul_(self.logit_scale),
            self.row_logsumexp_CR[column_caption, rows],
            attached_JA[:, row_caption],
        )


class TaughtTile(NamedTuple):
    """Logits of the teacher, and their log-sum-exps over all ranks."""

    logit_IJ: Tensor
    row_logsumexp_I: Tensor
    column_logsumexp_J: Tensor

    def divergence(
        self, logit_IJ: Tensor, row_logsumexp_I: Tensor, column_logsumexp_J: Tensor
    ) -> tuple[Tensor, Tensor]:
        """`½ Σ_ij (P_ij log(P_ij / Q_ij) + Pᵀ_ij log(Pᵀ_ij / Qᵀ_ij))` against a student's logits, in fp64, and its
        slope [I, J]."""
        of_rows = _divergence(self.logit_IJ - self.row_logsumexp_I[:, None], logit_IJ - row_logsumexp_I[:, None])
        of_columns = _divergence(self.logit_IJ - self.column_logsumexp_J, logit_IJ - column_logsumexp_J)
        return (of_rows[0] + of_columns[0]) / 2, torch.lerp(of_rows[1], of_columns[1], 0.5)


def _divergence(log_p_IJ: Tensor, log_q_IJ: Tensor) -> tuple[Tensor, Tensor]:
    """`Σ_ij P_ij log(P_ij / Q_ij)` in fp64, and its slope, `Q - P`."""
    p_IJ = log_p_IJ.exp()
    value = (p_IJ * (log_p_IJ - log_q_IJ)).sum(dtype=torch.float64)
    return value, log_q_IJ.exp().sub_(p_IJ)
