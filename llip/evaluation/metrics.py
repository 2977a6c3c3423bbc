"""Metrics of rankings, fair to ties, and what chance gives.

Scores of a model can tie (a constant scorer, identical captions, saturated cosines). Every metric here is the
expectation over a random order of what ties (McSherry and Najork, *Computing information retrieval performance measures
efficiently in the presence of tied scores*, 2008), so that nobody gains by the order of the rows. Without ties they are
the textbook metrics. A constant scorer ties everything: what it gets is the expectation over all rankings, and that is
the chance level given beside each metric.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from llip.headline import headline

RANKS = (1, 5, 10)
"""Ranks at which recall is measured."""


@dataclass(frozen=True)
class Metric:
    """A value and what random ranking gets, both shares in [0, 1]; the interval where one was made (`bootstrap`)."""

    value: float
    chance: float
    low: float | None = None
    high: float | None = None
    """Ends of the 95 % interval."""
    over: str = ""
    """Resampled units behind the interval: `600 images`."""

    @property
    def interval(self) -> str:
        """The interval as text: `0.412–0.467`, or a dash."""
        return "–" if self.low is None else f"{self.low:.3f}–{self.high:.3f}"

    def stored(self) -> dict[str, float | str]:
        """The fields that are given, as a file holds them."""
        return {name: field for name, field in vars(self).items() if field not in (None, "")}


def logged(metrics: Mapping[str, Metric]) -> dict[str, float]:
    """Numbers of metrics `<set>/<metric>` for the log: all values, and the ends of the headlines' intervals."""
    values = {name: metric.value for name, metric in metrics.items()}
    for name in headline(metrics):
        for end in ("low", "high"):
            if (bound := getattr(metrics[name], end)) is not None:
                values[f"{name}_{end}"] = bound
    return values


def chance_levels(metrics: dict[str, Metric]) -> dict[str, float]:
    """Chance level of each metric: its value for a random ranking."""
    return {name: metric.chance for name, metric in metrics.items()}


def hit_at_k(above: ArrayLike, tied_positives: ArrayLike, tied_negatives: ArrayLike, k: int) -> NDArray[np.float64]:
    """Probability that a positive is among the first k: that the places left do not all go to tied negatives.

    `above`: negatives that score higher than the best positive · `tied_…`: items that score as it does, itself
    included. Arrays of one shape.
    """
    above, positives, negatives = (np.asarray(x, dtype=np.float64) for x in (above, tied_positives, tied_negatives))
    places = k - above
    miss = np.ones(np.broadcast(above, positives, negatives).shape)
    for place in range(k):
        share = np.maximum(negatives - place, 0) / np.maximum(negatives + positives - place, 1)
        miss = np.where(place < places, miss * share, miss)
    return 1 - miss


class TieGroups(NamedTuple):
    """The positives of one query by distinct score, from the highest: one entry a score."""

    above: NDArray[np.int64]
    """Items of the gallery with a higher score."""
    tied: NDArray[np.int64]
    """Items with this score, positives included."""
    positives_above: NDArray[np.int64]
    positives_tied: NDArray[np.int64]


def tie_groups(scores_N: NDArray[np.floating], positives: NDArray[np.integer]) -> TieGroups:
    """Ranks of a query's positives among N items. `positives`: their indices, at least one."""
    value_G, count_G = np.unique(scores_N[positives], return_counts=True)
    # searchsorted counts, for every item, the positive values below it (left) and not above it (right); bins above g
    # are items above value g
    higher_G = np.cumsum(_bins(value_G, scores_N, "left")[::-1])[::-1][1:]
    not_lower_G = np.cumsum(_bins(value_G, scores_N, "right")[::-1])[::-1][1:]
    count_G = count_G[::-1]
    return TieGroups(
        above=higher_G[::-1],
        tied=(not_lower_G - higher_G)[::-1],
        positives_above=np.cumsum(count_G) - count_G,
        positives_tied=count_G,
    )


def _bins(value_G: NDArray[Any], scores_N: NDArray[Any], side: Literal["left", "right"]) -> NDArray[np.int64]:
    return np.bincount(np.searchsorted(value_G, scores_N, side=side), minlength=len(value_G) + 1)


def average_precision(groups: TieGroups) -> float:
    """Average precision of one query: the mean, over its positives, of the precision at their ranks.

    In a group of n tied items with p positives, s items and r positives above it, place i holds a positive with
    probability p/n, and the precision there is then `(r + 1 + (i-1)(p-1)/(n-1)) / (s + i)` on average; the sum over i
    is a difference of harmonic numbers.
    """
    s, n, r, p = (np.asarray(x, dtype=np.float64) for x in groups)
    harmonic = _harmonic(groups.above + groups.tied) - _harmonic(groups.above)
    others = (p - 1) / np.maximum(n - 1, 1)
    gain = p / n * ((r + 1) * harmonic + others * (n - (s + 1) * harmonic))
    return float(gain.sum() / p.sum())


_harmonics = np.zeros(1)


def _harmonic(n: NDArray[np.int64]) -> NDArray[np.float64]:
    global _harmonics
    if (largest := int(n.max())) >= len(_harmonics):
        _harmonics = np.concatenate([[0.0], np.cumsum(1 / np.arange(1, 2 * largest + 1))])
    return _harmonics[n]


def all_tied(items: int, positives: int) -> TieGroups:
    """The ranking of a constant scorer, whose metrics are the chance levels of a query."""
    return TieGroups(*(np.array([x]) for x in (0, items, 0, positives)))
