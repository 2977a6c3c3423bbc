"""Scores of single items, whose mean is a metric: what intervals and paired tests resample.

An item is what a metric averages over: an image that is classified, a caption that is searched with, a decision between
captions. It belongs to one unit of every sort that was drawn from a population, such as its image and its caption.

Macro F1 is no mean over items. It is computed from their true and their predicted classes.

Axes: B replicates · C classes · I items · R runs · S strata.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array

UNITS = ("images", "captions", "choices", "groups")
"""Sorts of units, in the order in which they are told."""


@dataclass(frozen=True, kw_only=True, eq=False)
class ItemScores:
    """The items of one metric."""

    score_I: NDArray[np.float64]
    """In [0, 1]."""
    chance: float
    """Value of the metric under a random ranking."""
    units: Mapping[str, NDArray[np.int64]]
    """The number of each item's unit [I], by the sort of unit."""
    stratum_I: NDArray[np.int64] | None = None
    """Classes, or caption types. Where given, the metric is the mean over strata of the mean in each."""
    worst: bool = False
    """Whether the metric is that of the stratum with the lowest mean, in place of the mean over them."""
    predicted_I: NDArray[np.int64] | None = None
    """Predicted classes, where the metric is macro F1; strata are the true ones, and a score is 1 where both agree."""

    def __post_init__(self) -> None:
        assert self.units and set(self.units) <= set(UNITS)
        assert self.predicted_I is None or (self.stratum_I is not None and not self.worst)
        predicted = () if self.predicted_I is None else (self.predicted_I,)
        assert all(of.shape == self.score_I.shape for of in (*self.units.values(), *self._strata(), *predicted))

    def _strata(self) -> tuple[NDArray[np.int64], ...]:
        return () if self.stratum_I is None else (self.stratum_I,)

    @cached_property
    def value(self) -> float:
        """The metric."""
        return float(self.means(np.ones((1, len(self.score_I))))[0])

    def means(self, weight_BI: NDArray[np.floating]) -> NDArray[np.float64]:
        """The metric [B] under weights of the items. Strata without weight are left out."""
        if self.predicted_I is not None:
            assert self.stratum_I is not None
            return macro_f1(self.stratum_I, self.predicted_I, weight_BI)
        return weighted_means(self.score_I[None], weight_BI, self.stratum_I, self.worst)[:, 0]

    @cached_property
    def over(self) -> str:
        """Units that are resampled, with their numbers: `600 images × 24 captions`."""
        counted = {sort: len(np.unique(self.units[sort])) for sort in UNITS if sort in self.units}
        return " × ".join(f"{count:,} {sort if count > 1 else sort[:-1]}" for sort, count in counted.items())

    def same_items(self, other: "ItemScores") -> bool:
        """Whether these are scores of the same items in the same order, by the same metric."""
        ours, theirs = ([*of.units.items(), *(("", s) for s in of._strata())] for of in (self, other))
        alike = len(ours) == len(theirs) and (self.predicted_I is None) == (other.predicted_I is None)
        return alike and all(a == b and np.array_equal(x, y) for (a, x), (b, y) in zip(ours, theirs, strict=True))


def means_of(runs: Sequence[ItemScores], weight_BI: NDArray[np.floating]) -> NDArray[np.float64]:
    """The metric [B, R] of runs that have scores of the same items, under the same weights."""
    first = runs[0]
    if first.predicted_I is not None:
        return np.stack([run.means(weight_BI) for run in runs], axis=1)
    return weighted_means(np.stack([run.score_I for run in runs]), weight_BI, first.stratum_I, first.worst)


def macro_f1(
    label_I: NDArray[np.int64], predicted_I: NDArray[np.int64], weight_BI: NDArray[np.floating]
) -> NDArray[np.float64]:
    """Macro F1 [B] under weights of the items, as WILDS defines it (Koh et al., ICML 2021).

    F1 of a class is twice its right items over the sum of those labelled and those predicted as it. The mean is over
    the classes that occur among labels: others can be predicted, and have no F1. NaN where there is no weight.
    """
    classes = 1 + max(int(label_I.max()), int(predicted_I.max()))
    start_I = np.arange(len(label_I) + 1)

    def weight_of(class_I: NDArray[np.int64], counts_I: NDArray[np.float64]) -> NDArray[np.float64]:
        """The weight of each class [B, C]: a product with a sparse matrix, one entry an item."""
        return np.asarray(weight_BI @ csr_array((counts_I, class_I, start_I), shape=(len(class_I), classes)))

    every_I = np.ones(len(label_I))
    true_BC = weight_of(label_I, every_I)
    both_BC = true_BC + weight_of(predicted_I, every_I)
    right_BC = weight_of(label_I, (label_I == predicted_I).astype(np.float64))
    share_BC = np.divide(2 * right_BC, both_BC, out=np.full_like(both_BC, np.inf), where=true_BC > 0)
    return np.where(true_BC.any(axis=1), _mean_of_finite(share_BC), np.nan)


def weighted_means(
    score_RI: NDArray[np.floating],
    weight_BI: NDArray[np.floating],
    stratum_I: NDArray[np.int64] | None,
    worst: bool = False,
) -> NDArray[np.float64]:
    """Means [B, R] of several score lists of the same items; over strata the mean, or the lowest, of those in each."""
    if stratum_I is None:
        total_B1 = weight_BI.sum(axis=1, keepdims=True)
        return np.asarray(weight_BI @ score_RI.T / np.where(total_B1 > 0, total_B1, np.nan))
    order_I = np.argsort(stratum_I, kind="stable")
    start_S = np.flatnonzero(np.diff(stratum_I[order_I], prepend=-1))
    weight_BI = weight_BI[:, order_I]
    total_BS = np.add.reduceat(weight_BI, start_S, axis=1)
    mean_BR = np.empty((len(weight_BI), len(score_RI)))
    for place, score_I in enumerate(score_RI):
        sum_BS = np.add.reduceat(weight_BI * score_I[order_I], start_S, axis=1)
        share_BS = np.divide(sum_BS, total_BS, out=np.full_like(sum_BS, np.inf), where=total_BS > 0)
        mean_BR[:, place] = share_BS.min(axis=1) if worst else _mean_of_finite(share_BS)
    mean_BR[total_BS.sum(axis=1) == 0] = np.nan
    return mean_BR


def _mean_of_finite(share_BS: NDArray[np.float64]) -> NDArray[np.float64]:
    given_BS = np.isfinite(share_BS)
    return np.asarray(np.where(given_BS, share_BS, 0).sum(axis=1) / np.maximum(given_BS.sum(axis=1), 1))
