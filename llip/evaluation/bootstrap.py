"""Intervals of metrics: the bootstrap over the units that their items belong to.

One sort of unit is resampled by the ordinary bootstrap (Efron and Tibshirani, *An introduction to the bootstrap*,
1993), several by the pigeonhole bootstrap of crossed factors (Owen, *The pigeonhole bootstrap*, Annals of Applied
Statistics 1, 2007): an item weighs the product of the numbers of times that its image and its caption were drawn. The
gallery of retrieval, the classes, the caption types and the model with its seed are not resampled.

Axes: B replicates · I items · R runs · U units.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from llip.evaluation.item_scores import UNITS, ItemScores, means_of
from llip.evaluation.metrics import Metric

REPLICATES = 1000
COVERAGE = 0.95
WEIGHTS = 1 << 23
"""Weights held at once (32 MB, and a few copies)."""


def item_weights(scores: ItemScores, replicates: int = REPLICATES, seed: int = 0) -> Iterator[NDArray[np.float32]]:
    """Weights [B, I] of the items, a chunk of replicates at a time: a function of the items and the seed."""
    drawn = [_Drawn(unit_I, [seed, UNITS.index(sort)]) for sort, unit_I in scores.units.items()]
    largest = max(len(scores.score_I), *(of.count for of in drawn))
    at_once = max(1, WEIGHTS // largest)
    for start in range(0, replicates, at_once):
        weight_BI, *others = [of.weights(min(at_once, replicates - start)) for of in drawn]
        for other_BI in others:
            weight_BI = weight_BI * other_BI
        yield weight_BI


class _Drawn:
    """Draws of the units of one sort."""

    def __init__(self, unit_I: NDArray[np.int64], seed: list[int]) -> None:
        found_U, self.place_I = np.unique(unit_I, return_inverse=True)
        self.count = len(found_U)
        self.rng = np.random.default_rng(seed)

    def weights(self, replicates: int) -> NDArray[np.float32]:
        """[B, I]"""
        unit_BU = self.rng.integers(self.count, size=(replicates, self.count))
        unit_BU += np.arange(replicates)[:, None] * self.count
        times = np.bincount(unit_BU.ravel(), minlength=replicates * self.count).astype(np.float32)
        return np.asarray(times.reshape(replicates, self.count)[:, self.place_I])


def replicates(scores: ItemScores, count: int = REPLICATES, seed: int = 0) -> NDArray[np.float64]:
    """The metric in every replicate [B]; NaN where the draw left no item."""
    return np.concatenate([replicates_of([scores], weight_BI)[:, 0] for weight_BI in item_weights(scores, count, seed)])


def replicates_of(runs: Sequence[ItemScores], weight_BI: NDArray[np.floating]) -> NDArray[np.float64]:
    """The metric [B, R] of runs that have scores of the same items, in replicates with these weights.

    Replicates of macro F1 are reflected at its value, so that percentiles give the basic interval (Davison and Hinkley,
    *Bootstrap methods and their application*, 1997, section 5.2). F1 of a class with few images is biased downwards,
    and that of a draw from these images once more: percentiles as they are would lie too low by twice the bias.
    """
    mean_BR = means_of(runs, weight_BI)
    if runs[0].predicted_I is None:
        return mean_BR
    return 2 * np.array([run.value for run in runs]) - mean_BR


def interval(value_B: NDArray[np.float64], coverage: float = COVERAGE) -> tuple[float, float]:
    """The percentile interval of replicates."""
    low, high = np.nanquantile(value_B, [(1 - coverage) / 2, (1 + coverage) / 2])
    return float(low), float(high)


def ends(value_B: NDArray[np.float64], value: float) -> tuple[float, float]:
    """The interval of a metric with this value: within [0, 1], as metrics are, and not beside the value."""
    low, high = interval(value_B)
    return min(max(low, 0.0), value), max(min(high, 1.0), value)


def judged(scores: ItemScores) -> Metric:
    """The metric with its interval; none where nothing was drawn more than once.

    Where every item scores 0, or every item 1, the bootstrap has no width: there the bound is that of Clopper and
    Pearson (1934) for as many units as the scarcest sort has.
    """
    metric = Metric(scores.value, scores.chance)
    units = min(len(np.unique(unit_I)) for unit_I in scores.units.values())
    if units < 2:
        return metric
    first = scores.score_I[0]
    if first in (0, 1) and (scores.score_I == first).all():
        margin = 1 - ((1 - COVERAGE) / 2) ** (1 / units)
        low, high = (0.0, margin) if first == 0 else (1 - margin, 1.0)
    else:
        low, high = ends(replicates(scores), scores.value)
    return replace(metric, low=low, high=high, over=scores.over)


def judge(metrics: Mapping[str, ItemScores]) -> dict[str, Metric]:
    """Metrics with their intervals."""
    return {name: judged(scores) for name, scores in metrics.items()}
