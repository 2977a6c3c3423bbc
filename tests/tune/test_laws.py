"""A known law is found again, with noise and outliers too, and predicts what was left out; what has none is refused."""

import itertools

import numpy as np
import pytest

from tune.laws import Law, TrainedSize, fit, fittable, predictions

KNOWN = Law(floor=0.5, a=0.3, alpha=0.7, b=0.4, beta=0.9, size_unit=2.0, steps_unit=900.0)
SIZES, LENGTHS = (0.5, 2.0, 8.0), (300, 600, 1200, 2400)


def runs(law: Law = KNOWN, noise: float = 0.0, sizes: tuple[float, ...] = SIZES) -> list[TrainedSize]:
    rng = np.random.default_rng(0)
    return [
        TrainedSize(size=size, steps=steps, value=law(size, steps) * float(np.exp(noise * rng.normal())))
        for size, steps in itertools.product(sizes, LENGTHS)
    ]


def test_a_known_law_is_found_again() -> None:
    found = fit(runs())
    assert (found.floor, found.alpha, found.beta) == pytest.approx((0.5, 0.7, 0.9), rel=1e-3)
    for size, steps in ((0.1, 100), (100.0, 50_000)):
        assert found(size, steps) == pytest.approx(KNOWN(size, steps), rel=1e-3)


def test_a_law_without_a_floor_is_found_too() -> None:
    pure = Law(floor=1e-6, a=0.3, alpha=0.5, b=0.4, beta=0.5, size_unit=2.0, steps_unit=900.0)
    found = fit(runs(pure))
    assert found.floor < 0.02 and found(8.0, 2400) == pytest.approx(pure(8.0, 2400), rel=1e-2)


def test_an_outlier_hardly_moves_it() -> None:
    given = runs(noise=0.002)
    given[5] = TrainedSize(size=given[5].size, steps=given[5].steps, value=1.5 * given[5].value)
    found = fit(given)
    errors = [abs(found(run.size, run.steps) / KNOWN(run.size, run.steps) - 1) for run in given]
    assert max(errors) < 0.02


def test_ends_are_predicted_without_having_been_seen() -> None:
    corner, longest = predictions(runs(noise=0.003))
    assert [(run.size, run.steps) for run in corner.runs] == [(8.0, 2400)]
    assert [run.steps for run in longest.runs] == [2400] * 3
    assert corner.error < 0.02 and longest.error < 0.02
    largest = predictions(runs(sizes=(0.5, 1.0, 2.0, 8.0)))[-1]
    assert [run.size for run in largest.runs] == [8.0] * 4 and largest.error < 0.02


def test_what_breaks_the_law_shows_in_the_error() -> None:
    given = runs()
    given[-1] = TrainedSize(size=8.0, steps=2400, value=given[-1].value / 2)
    corner, _ = predictions(given)
    assert corner.errors == pytest.approx([1.0], abs=0.05)


def test_too_few_sizes_or_lengths_and_values_that_have_no_logarithm_are_refused() -> None:
    assert not fittable(runs(sizes=(1.0, 2.0)))
    with pytest.raises(ValueError, match="at least 3 sizes and 3 lengths"):
        fit(runs(sizes=(1.0, 2.0)))
    with pytest.raises(ValueError, match="a law is of positive values"):
        fit([*runs(), TrainedSize(size=1.0, steps=10, value=0.0)])
