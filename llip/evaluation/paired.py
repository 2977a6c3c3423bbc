"""Paired comparison of two runs, or of two groups of seeds, by their scores of the same items.

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

from llip.evaluation.bootstrap import COVERAGE, interval, item_weights
from llip.evaluation.item_scores import ItemScores, weighted_means

REPLICATES = 2000


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
        """What can be concluded, and what cannot, in one sentence."""
        ends = sorted((abs(self.low), abs(self.high)))
        single = [name for name, count in zip((first, second), self.seeds, strict=True) if count == 1]
        of_what = f"{self.over} like these" if single else f"other seeds, and {self.over} like these"
        limit = f"; one seed of {' and of '.join(single)} says nothing of other seeds" if single else ""
        if not self.decided:
            return f"No winner is shown: anything from {self.low:+.3f} to {self.high:+.3f} fits {of_what}{limit}."
        ahead, behind = (second, first) if self.value > 0 else (first, second)
        return f"{ahead} is ahead of {behind} by {ends[0]:.3f} to {ends[1]:.3f} on {of_what}{limit}."


def difference(first: Sequence[ItemScores], second: Sequence[ItemScores], *, seed: int = 0) -> Difference:
    """Compare two groups of runs, each given by its scores of the same items.

    Raises ValueError where the items are not the same.
    """
    runs = [*first, *second]
    if not all(runs[0].same_items(other) for other in runs[1:]):
        raise ValueError("the scores are not of the same items in the same order")
    score_RI = np.stack([run.score_I for run in runs])
    mean_BR = np.concatenate(
        [
            weighted_means(score_RI, weight_BI, runs[0].stratum_I, runs[0].worst)
            for weight_BI in item_weights(runs[0], REPLICATES)
        ]
    )
    groups = np.split(mean_BR, [len(first)], axis=1)
    scale, rng = _scale([[run.value for run in group] for group in (first, second)]), np.random.default_rng([seed, 1])
    before_B, after_B = (_over_seeds(mean_BS, scale, rng) for mean_BS in groups)
    low, high = interval(after_B - before_B)
    value = float(np.mean([run.value for run in second]) - np.mean([run.value for run in first]))
    return Difference(value=value, low=low, high=high, seeds=(len(first), len(second)), over=runs[0].over)


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
