"""Calibration of the sigmoid's match probabilities: `sigmoid(scale · cosine + bias)` of an image and a caption against
whether the caption is true of the image, over all pairs of a retrieval set.

The expected calibration error is the mean, over pairs, of the distance between probability and share of true pairs in
fifteen bins of equal width (Guo et al., *On calibration of modern neural networks*, ICML 2017). A gallery has another
share of true pairs than the batches of training, one in as many as a batch has images. So the error is also given with
the bias shifted until the mean probability is the gallery's share: this error does not come from the prior.

Logits are counted in steps of 1/64; a probability is known to .4 %.

Axes: S captions of a chunk · N images · H steps of the logit · V bins.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

LIMIT, STEPS = 32, 64
"""Largest logit that is told apart; counted steps of a logit of 1."""
BINS = 15


class Scaled(Protocol):
    """A model whose logits are `exp(logit_scale) · cosine + logit_bias`."""

    logit_scale: Tensor
    logit_bias: Tensor | None


class LogitCounts:
    """Counts of all pairs and of true ones by logit."""

    def __init__(self, scale: float, bias: float) -> None:
        self.scale, self.bias = scale, bias
        self.count_2H = np.zeros((2, 2 * LIMIT * STEPS + 1), np.int64)

    @classmethod
    def of(cls, model: object) -> "LogitCounts | None":
        """Counts for a model's sigmoid; None for one without a bias, which gives no probabilities of single pairs."""
        scale, bias = getattr(model, "logit_scale", None), getattr(model, "logit_bias", None)
        return None if scale is None or bias is None else cls(float(scale.exp()), float(bias))

    def add(self, score_SN: Tensor, true_SN: Tensor) -> None:
        """Count the pairs of a chunk: cosines, and which captions are true of which images."""
        logit_SN = (score_SN.double() * self.scale + self.bias).clamp(-LIMIT, LIMIT)
        step_SN = ((logit_SN + LIMIT) * STEPS).round().long()
        for place, chosen in enumerate((step_SN.flatten(), step_SN[true_SN])):
            self.count_2H[place] += torch.bincount(chosen, minlength=self.count_2H.shape[1]).cpu().numpy()


@dataclass(frozen=True)
class Calibration:
    """Calibration of a set, from its counts of logits."""

    pairs: int
    prevalence: float
    """Share of true pairs."""
    mean: float
    """Mean probability."""
    error: float
    """Expected calibration error."""
    shift: float
    """Change of the bias with which the mean probability is the prevalence."""
    error_shifted: float
    bins: Sequence[tuple[float, float, int]]
    """Mean probability, share of true pairs and pairs of each bin that has some."""

    @classmethod
    def of(cls, count_2H: NDArray[np.int64]) -> "Calibration":
        all_H, true_H = count_2H.astype(np.float64)
        logit_H = np.arange(len(all_H)) / STEPS - LIMIT
        pairs, prevalence = all_H.sum(), true_H.sum() / all_H.sum()
        low, high = -2.0 * LIMIT, 2.0 * LIMIT
        for _ in range(60):  # the mean probability rises with the shift
            shift = (low + high) / 2
            if (all_H * _sigmoid(logit_H + shift)).sum() / pairs < prevalence:
                low = shift
            else:
                high = shift
        bins = _bins(_sigmoid(logit_H), all_H, true_H)
        return cls(
            pairs=int(pairs),
            prevalence=float(prevalence),
            mean=float((all_H * _sigmoid(logit_H)).sum() / pairs),
            error=_error(bins),
            shift=float(shift),
            error_shifted=_error(_bins(_sigmoid(logit_H + shift), all_H, true_H)),
            bins=bins,
        )

    def stored(self) -> dict[str, float]:
        """The numbers without the bins, as a file holds them."""
        return {name: value for name, value in vars(self).items() if name != "bins"}

    def cells(self) -> list[str]:
        """Cells of a table row: see `HEAD`."""
        numbers = (self.prevalence, self.mean, self.error, self.error_shifted)
        return [f"{self.pairs:,}", *(f"{x:.4f}" for x in numbers), f"{self.shift:+.2f}"]


HEAD = ("pairs", "true", "mean probability", "calibration error", "error with the gallery's prior", "shift of the bias")


def _sigmoid(logit_H: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.asarray(1 / (1 + np.exp(-logit_H)))


def _bins(
    probability_H: NDArray[np.float64], all_H: NDArray[np.float64], true_H: NDArray[np.float64]
) -> list[tuple[float, float, int]]:
    bin_H = np.minimum((probability_H * BINS).astype(int), BINS - 1)
    pairs_V, true_V, sum_V = (
        np.bincount(bin_H, weights=of, minlength=BINS) for of in (all_H, true_H, all_H * probability_H)
    )
    return [(sum_V[v] / pairs_V[v], true_V[v] / pairs_V[v], int(pairs_V[v])) for v in np.flatnonzero(pairs_V)]


def _error(bins: Sequence[tuple[float, float, int]]) -> float:
    return float(sum(abs(mean - share) * pairs for mean, share, pairs in bins) / sum(pairs for *_, pairs in bins))
