"""Scores of single items, whose mean is a metric: what intervals and paired tests resample.

An item is what a metric averages over: an image that is classified, a caption that is searched with, a decision between
captions. It belongs to one unit of every sort that was drawn from a population, such as its image and its caption.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

UNITS = ("images", "captions", "choices", "groups")
"""Sorts of units, in the order in which they are told."""


@dataclass(frozen=True, kw_only=True, eq=False)
class ItemScores:
    """The items of one metric."""

    score_I: NDArray[np.float64]
    """In [0, 1]."""
    chance: float
    """What random ranking gives the metric."""
    units: Mapping[str, NDArray[np.int64]]
    """The number of each item's unit [I], by the sort of unit."""
    stratum_I: NDArray[np.int64] | None = None
    """Where given, the metric is the mean over strata of the mean in each: classes, or caption types."""
    worst: bool = False
    """Whether the metric is that of the stratum with the lowest mean, in place of the mean over them."""

    def __post_init__(self) -> None:
        assert self.units and set(self.units) <= set(UNITS)
        assert all(of.shape == self.score_I.shape for of in (*self.units.values(), *self._strata()))

    def _strata(self) -> tuple[NDArray[np.int64], ...]:
        return () if self.stratum_I is None else (self.stratum_I,)

    @cached_property
    def value(self) -> float:
        """The metric."""
        return float(self.means(np.ones((1, len(self.score_I))))[0])

    def means(self, weight_BI: NDArray[np.floating]) -> NDArray[np.float64]:
        """The metric [B] under weights of the items. Strata without weight are left out."""
        return weighted_means(self.score_I[None], weight_BI, self.stratum_I, self.worst)[:, 0]

    @cached_property
    def over(self) -> str:
        """Units that are resampled, with their numbers: `600 images × 24 captions`."""
        counted = {sort: len(np.unique(self.units[sort])) for sort in UNITS if sort in self.units}
        return " × ".join(f"{count:,} {sort if count > 1 else sort[:-1]}" for sort, count in counted.items())

    def same_items(self, other: "ItemScores") -> bool:
        """Whether these are scores of the same items in the same order."""
        ours, theirs = ([*of.units.items(), *(("", s) for s in of._strata())] for of in (self, other))
        return len(ours) == len(theirs) and all(
            a == b and np.array_equal(x, y) for (a, x), (b, y) in zip(ours, theirs, strict=True)
        )


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
