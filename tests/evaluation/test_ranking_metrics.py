"""Tie-fair metrics against scikit-learn, brute force over permutations, and the value of a constant scorer."""

import itertools
from collections.abc import Callable
from functools import partial

import numpy as np
import pytest
from sklearn.metrics import average_precision_score

from llip.evaluation.metrics import Metric, all_tied, average_precision, chance_levels, hit_at_k, tie_groups


def brute_force(scores: np.ndarray, positives: np.ndarray, metric: Callable[[np.ndarray], float]) -> float:
    """Mean of a metric over every order of the items that sorts their scores."""
    relevant = np.isin(np.arange(len(scores)), positives)
    values = []
    for order in itertools.permutations(range(len(scores))):
        ranked = scores[list(order)]
        if (ranked[:-1] >= ranked[1:]).all():
            values.append(metric(relevant[list(order)]))
    return float(np.mean(values))


def textbook_average_precision(relevant: np.ndarray) -> float:
    precision = np.cumsum(relevant) / np.arange(1, len(relevant) + 1)
    return float(precision[relevant].mean())


def hit_among(k: int, relevant: np.ndarray) -> float:
    return float(relevant[:k].any())


@pytest.mark.parametrize("seed", range(5))
def test_average_precision_without_ties_is_scikit_learns(seed: int) -> None:
    rng = np.random.default_rng(seed)
    scores = rng.normal(size=200)
    positives = rng.choice(200, rng.integers(1, 60), replace=False)
    expected = average_precision_score(np.isin(np.arange(200), positives), scores)
    assert average_precision(tie_groups(scores, positives)) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("seed", range(6))
def test_tied_scores_get_the_mean_over_all_their_orders(seed: int) -> None:
    rng = np.random.default_rng(seed)
    scores = rng.integers(0, 3, size=7).astype(float)
    positives = rng.choice(7, rng.integers(1, 5), replace=False)
    groups = tie_groups(scores, positives)
    expected = brute_force(scores, positives, textbook_average_precision)
    assert average_precision(groups) == pytest.approx(expected, abs=1e-12)
    for k in (1, 2, 5):
        hit = hit_at_k(groups.above[0], groups.positives_tied[0], groups.tied[0] - groups.positives_tied[0], k)
        assert hit == pytest.approx(brute_force(scores, positives, partial(hit_among, k)), abs=1e-12)


def test_a_constant_scorer_gets_what_random_rankings_get() -> None:
    rng = np.random.default_rng(0)
    items, positives = 40, np.array([3, 17, 18])
    random = [average_precision(tie_groups(rng.normal(size=items), positives)) for _ in range(20_000)]
    constant = average_precision(tie_groups(np.ones(items), positives))
    assert constant == average_precision(all_tied(items, 3))
    assert constant == pytest.approx(np.mean(random), abs=4 * np.std(random) / np.sqrt(20_000))


def test_hit_at_k_of_a_random_ranking_is_hypergeometric() -> None:
    assert hit_at_k(0, 1, 99, 5) == pytest.approx(0.05)
    assert hit_at_k(0, 2, 2, 2) == pytest.approx(1 - 1 / 6)
    assert hit_at_k(0, 5, 3, 5) == pytest.approx(1)
    assert hit_at_k([0, 4, 5, 9], 1, 0, 5).tolist() == [1, 1, 0, 0]


def test_chance_levels_keep_the_names() -> None:
    assert chance_levels({"a/top1": Metric(0.5, 0.1)}) == {"a/top1": 0.1}
