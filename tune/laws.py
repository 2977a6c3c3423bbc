"""A scaling law of size and steps: its fit, and how well it predicts what it has not seen.

y = floor + a · size^-alpha + b · steps^-beta, the form of Hoffmann et al. 2022 (arXiv 2203.15556, equation 2), with
steps in place of tokens, since batches are of one size here. As there (section D.2) it is fitted in logarithms, with
Huber's loss, from many starts, of which the best is kept.
"""

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

HUBER = 1e-2
"""Residual, in logarithms, beyond which a point weighs less."""
SHARES, EXPONENTS = (0.1, 0.8), (0.3, 1.0)
"""Starts of the fit: the floor as a share of the least value, and both exponents."""
STEEPEST = 4.0
FEWEST = 3
"""Sizes, and lengths, that a fit needs of each."""


@dataclass(frozen=True, kw_only=True)
class TrainedSize:
    """One model at its end."""

    size: float
    """In any unit, such as FLOPs of a step."""
    steps: int
    value: float
    """A quantity that falls: a loss, or 1 less a metric."""


@dataclass(frozen=True, kw_only=True)
class Law:
    """Scaling law: `floor + a (size / size_unit)^-alpha + b (steps / steps_unit)^-beta`."""

    floor: float
    """The value of endless models and runs."""
    a: float
    """Excess over the floor of a model of `size_unit`, due to its size."""
    alpha: float
    b: float
    """Excess over the floor of a run of `steps_unit` steps, due to its length."""
    beta: float
    size_unit: float
    steps_unit: float

    def __call__(self, size: float, steps: float) -> float:
        of_size = self.a * (size / self.size_unit) ** -self.alpha
        return self.floor + of_size + self.b * (steps / self.steps_unit) ** -self.beta

    def __str__(self) -> str:
        return (
            f"{self.floor:.3g} + {self.a:.3g}·(size / {self.size_unit:.3g})^-{self.alpha:.2f} + "
            f"{self.b:.3g}·(steps / {self.steps_unit:,.0f})^-{self.beta:.2f}"
        )


def fittable(runs: Sequence[TrainedSize]) -> bool:
    """Whether there are enough sizes and lengths."""
    return min(len({run.size for run in runs}), len({run.steps for run in runs})) >= FEWEST


def fit(runs: Sequence[TrainedSize]) -> Law:
    """The law of some runs. Raises ValueError for fewer than three sizes or lengths, and for a value that is not
    positive."""
    from scipy.optimize import least_squares

    if not fittable(runs):
        raise ValueError(f"a law needs runs of at least {FEWEST} sizes and {FEWEST} lengths")
    if wrong := [run for run in runs if not run.value > 0]:
        raise ValueError(f"a law is of positive values; {wrong[0]} has none")
    size_R, steps_R, value_R = np.array([(run.size, run.steps, run.value) for run in runs]).T
    size_unit, steps_unit = (float(np.exp(np.log(x).mean())) for x in (size_R, steps_R))
    size_R, steps_R, log_R = np.log(size_R / size_unit), np.log(steps_R / steps_unit), np.log(value_R)

    def residuals(at: NDArray[np.float64]) -> NDArray[np.float64]:
        floor, a, alpha, b, beta = at
        return np.logaddexp.reduce([np.full_like(log_R, floor), a - alpha * size_R, b - beta * steps_R]) - log_R

    least, least_possible = float(log_R.min()), float(log_R.min()) - 12
    bounds = (
        [least_possible, least_possible, 0, least_possible, 0],
        [least, log_R.max() + 2, STEEPEST, log_R.max() + 2, STEEPEST],
    )
    found = [
        least_squares(residuals, start, bounds=bounds, loss="huber", f_scale=HUBER)
        for start in _starts(least, float(np.median(value_R)))
    ]
    floor, a, alpha, b, beta = min(found, key=lambda result: result.cost).x
    return Law(
        floor=math.exp(floor), a=math.exp(a), alpha=alpha, b=math.exp(b), beta=beta,
        size_unit=size_unit, steps_unit=steps_unit,
    )  # fmt: skip


def _starts(least: float, typical: float) -> Iterator[list[float]]:
    for share, alpha, beta in itertools.product(SHARES, EXPONENTS, EXPONENTS):
        floor = share * math.exp(least)
        half = math.log((typical - floor) / 2)
        yield [math.log(floor), half, alpha, half, beta]


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """Prediction of a law for runs that were left out of its fit."""

    left_out: str
    law: Law
    runs: Sequence[TrainedSize]

    @property
    def errors(self) -> list[float]:
        """Relative error of every run: predicted over measured, less 1."""
        return [self.law(run.size, run.steps) / run.value - 1 for run in self.runs]

    @property
    def error(self) -> float:
        """Mean absolute relative error."""
        return float(np.mean(np.abs(self.errors)))


def predictions(runs: Sequence[TrainedSize]) -> list[Prediction]:
    """Predictions of what lies at the ends, where enough is left to fit: the longest run of the largest model, all of
    the longest runs, all of the largest model."""
    largest, longest = max(run.size for run in runs), max(run.steps for run in runs)
    ends = {
        "the longest run of the largest model": [r for r in runs if r.size == largest and r.steps == longest],
        "the longest run of every size": [r for r in runs if r.steps == longest],
        "every run of the largest model": [r for r in runs if r.size == largest],
    }
    found = []
    for name, left_out in ends.items():
        known = [run for run in runs if run not in left_out]
        if fittable(known):
            found.append(Prediction(left_out=name, law=fit(known), runs=left_out))
    return found
