"""Paired comparison of two runs, or of groups of seeds, by their scores of the same items.

A hierarchical bootstrap: in every replicate the units of the items are drawn once for all runs, so that what is hard
about an image is hard for both, and the seeds of each group are drawn anew. The mean over n drawn seeds varies less
than that of n new ones, by n/(n-1), and few seeds know their spread badly: their deviations are scaled for both, by
Student's t with the degrees of freedom of Welch (*The generalization of Student's problem*, Biometrika 1947).

Axes: B replicates · I items · R runs of both groups · S seeds of one.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray
from scipy.special import stdtrit

from llip.evaluation.bootstrap import COVERAGE, ends, interval, item_weights, replicates_of
from llip.evaluation.item_scores import ItemScores

REPLICATES = 2000


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """A group's mean of a metric, with its 95 % interval over items and, where it has several, over seeds."""

    value: float
    low: float
    high: float


@dataclass(frozen=True, kw_only=True)
class Difference:
    """The second group's mean of a metric less the first one's, with its 95 % interval."""

    value: float
    low: float
    high: float
    seeds: tuple[int, int]
    """Runs of each group. With one in either, the interval holds the models as they are."""
    over: str
    """Units that were resampled: `600 images`."""

    @property
    def decided(self) -> bool:
        """Whether the interval leaves one sign only."""
        return self.low > 0 or self.high < 0

    def conclusion(self, first: str, second: str) -> str:
        """The conclusion, and what cannot be concluded, in one sentence."""
        ends = sorted((abs(self.low), abs(self.high)))
        single = [name for name, count in zip((first, second), self.seeds, strict=True) if count == 1]
        of_what = f"{self.over} like these" if single else f"other seeds, and {self.over} like these"
        limit = f"; one seed of {' and of '.join(single)} says nothing of other seeds" if single else ""
        if not self.decided:
            return f"No winner is shown: anything from {self.low:+.3f} to {self.high:+.3f} fits {of_what}{limit}."
        ahead, behind = (second, first) if self.value > 0 else (first, second)
        return f"{ahead} is ahead of {behind} by {ends[0]:.3f} to {ends[1]:.3f} on {of_what}{limit}."


class Replicates:
    """Means of a metric over the same draws of items for many runs, of which any groups are judged."""

    def __init__(self, runs: Sequence[ItemScores], *, seed: int = 0) -> None:
        """Raises ValueError where the items of the runs are not the same."""
        first = runs[0]
        if not all(first.same_items(other) for other in runs[1:]):
            raise ValueError("the scores are not of the same items in the same order")
        self.over = first.over
        self._values, self._seed = [run.value for run in runs], [seed, 1]
        self._mean_BR = np.concatenate(
            [replicates_of(runs, weight_BI) for weight_BI in item_weights(first, REPLICATES)]
        )

    def level(self, group: Sequence[int]) -> Estimate:
        """The mean of a group of runs, given by their places among all. Its interval lies in [0, 1], as metrics do."""
        (mean_B,) = self._means([group])
        value = float(np.mean([self._values[run] for run in group]))
        low, high = ends(mean_B, value)
        return Estimate(value=value, low=low, high=high)

    def difference(self, first: Sequence[int], second: Sequence[int]) -> Difference:
        """The second group less the first one."""
        before_B, after_B = self._means([first, second])
        low, high = interval(after_B - before_B)
        before, after = (float(np.mean([self._values[run] for run in group])) for group in (first, second))
        return Difference(value=after - before, low=low, high=high, seeds=(len(first), len(second)), over=self.over)

    def _means(self, groups: Sequence[Sequence[int]]) -> list[NDArray[np.float64]]:
        scale = _scale([[self._values[run] for run in group] for group in groups])
        rng = np.random.default_rng(self._seed)
        return [_over_seeds(self._mean_BR[:, list(group)], scale, rng) for group in groups]


def difference(first: Sequence[ItemScores], second: Sequence[ItemScores], *, seed: int = 0) -> Difference:
    """Compare two groups of runs, each given by its scores of the same items.

    Raises ValueError where the items are not the same.
    """
    places = range(len(first) + len(second))
    return Replicates([*first, *second], seed=seed).difference(places[: len(first)], places[len(first) :])


def _over_seeds(mean_BS: NDArray[np.float64], scale: float, rng: np.random.Generator) -> NDArray[np.float64]:
    """Means [B] over seeds that are drawn in each replicate; those of one seed as they are."""
    seeds, centre_B = mean_BS.shape[1], mean_BS.mean(axis=1)
    if seeds == 1:
        return np.asarray(centre_B)
    drawn_BS = np.take_along_axis(mean_BS, rng.integers(seeds, size=mean_BS.shape), axis=1)
    return np.asarray(centre_B + scale * (seeds / (seeds - 1)) ** 0.5 * (drawn_BS.mean(axis=1) - centre_B))


def _scale(groups: Sequence[Sequence[float]]) -> float:
    """Student's quantile over the normal one, with Welch's degrees of freedom of the means over seeds."""
    several = [group for group in groups if len(group) > 1]
    variances = [float(np.var(group, ddof=1)) / len(group) for group in several]
    if sum(variances) == 0:
        return 1.0
    squares = sum(v**2 / (len(group) - 1) for v, group in zip(variances, several, strict=True))
    end = (1 + COVERAGE) / 2
    return float(stdtrit(sum(variances) ** 2 / squares, end)) / NormalDist().inv_cdf(end)
