"""Differences between groups of seeds: coverage where the truth is known, pairing, and the words of the conclusion."""

import numpy as np
import pytest
from sklearn.metrics import f1_score

from llip.evaluation import bootstrap, paired, zero_shot
from llip.evaluation.item_scores import ItemScores
from llip.evaluation.paired import Difference, Replicates, difference

UNITS = {"images": np.arange(80)}


def scores(score_I: np.ndarray) -> ItemScores:
    return ItemScores(score_I=score_I, chance=0.1, units=UNITS)


def groups(rng: np.random.Generator, seeds: tuple[int, int], gain: float, spread: float) -> list[list[ItemScores]]:
    """Runs on items of shared difficulty; each run has an offset of its own, and the second group a gain."""
    hard = rng.normal(size=80)
    return [
        [scores(hard + better + rng.normal(scale=spread) + 0.3 * rng.normal(size=80)) for _ in range(count)]
        for count, better in zip(seeds, (0.0, gain), strict=True)
    ]


@pytest.mark.parametrize(("seeds", "spread"), [((1, 1), 0.0), ((3, 3), 0.1), ((5, 3), 0.1)])
def test_intervals_hold_the_true_difference(
    seeds: tuple[int, int], spread: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(paired, "REPLICATES", 400)
    rng, held = np.random.default_rng(0), 0
    for _ in range(200):
        found = difference(*groups(rng, seeds, gain=0.2, spread=spread))
        held += found.low <= 0.2 <= found.high
    assert held / 200 >= 0.9
    assert held / 200 < 1 or seeds != (1, 1)


def test_a_seed_that_is_taken_for_a_method_would_mislead() -> None:
    """Where seeds differ and methods do not, single runs seem decided often; groups of seeds rarely do."""
    rng, decided = np.random.default_rng(1), {1: 0, 4: 0}
    for _ in range(60):
        for seeds in decided:
            decided[seeds] += difference(*groups(rng, (seeds, seeds), gain=0.0, spread=0.3)).decided
    assert decided[1] > 30 and decided[4] < 9


def test_what_is_hard_for_both_does_not_count() -> None:
    """The interval of a constant gain has no width, however much the items differ."""
    hard = np.random.default_rng(2).random(80)
    found = difference([scores(hard)], [scores(hard + 0.05)])
    assert (found.value, found.low, found.high) == pytest.approx((0.05, 0.05, 0.05), abs=1e-6)
    assert found.decided and found.seeds == (1, 1) and found.over == "80 images"


def test_the_level_of_two_seeds_has_an_interval_within_what_a_metric_can_be() -> None:
    seeds = [scores(np.random.default_rng(seed).uniform(low, 1.0, 80)) for seed, low in ((3, 0.8), (4, 0.98))]
    found = Replicates(seeds).level([0, 1])
    assert found.value == pytest.approx(np.mean([run.value for run in seeds]))
    assert found.low < seeds[0].value and found.high == 1.0
    alone = Replicates(seeds[:1]).level([0])
    assert alone.low < seeds[0].value < alone.high < 0.93


def test_macro_f1_is_compared_run_by_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(paired, "REPLICATES", 60)
    rng = np.random.default_rng(5)
    label = rng.integers(0, 4, 80)
    predicted = [np.where(rng.random(80) < share, label, rng.integers(0, 6, 80)) for share in (0.4, 0.8)]
    runs = [zero_shot.macro_f1(label, of_run, 6) for of_run in predicted]
    found = difference(runs[:1], runs[1:])

    def literal(times: np.ndarray) -> float:
        drawn = np.repeat(np.arange(80), times.astype(int))
        first, second = (
            f1_score(label[drawn], of_run[drawn], average="macro", labels=np.unique(label[drawn]))
            for of_run in predicted
        )
        return float(second - first)

    value = literal(np.ones(80))
    replicates = [2 * value - literal(times) for times in np.concatenate(list(bootstrap.item_weights(runs[0], 60)))]
    assert (found.low, found.high) == pytest.approx(bootstrap.interval(np.array(replicates)), abs=1e-6)
    assert found.value == pytest.approx(value) and found.decided and found.over == "80 images"
    with pytest.raises(ValueError, match="not of the same items"):
        difference(runs[:1], [zero_shot.accuracies(np.zeros(80, int), np.ones(80, int), label, 6)["mean_per_class"]])


def test_other_items_are_refused() -> None:
    other = ItemScores(score_I=np.ones(80), chance=0.1, units={"images": np.arange(80)[::-1].copy()})
    with pytest.raises(ValueError, match="not of the same items"):
        difference([scores(np.ones(80))], [other])


@pytest.mark.parametrize(
    ("value", "low", "high", "seeds", "said"),
    [
        (0.03, 0.01, 0.05, (3, 3), "b is ahead of a by 0.010 to 0.050 on other seeds, and 80 images like these."),
        (-0.03, -0.05, -0.01, (1, 3), "a is ahead of b by 0.010 to 0.050 on 80 images like these; one seed of a says"),
        (0.01, -0.01, 0.03, (3, 3), "No winner is shown: anything from -0.010 to +0.030 fits other seeds"),
        (0.01, -0.01, 0.03, (1, 1), "like these; one seed of a and of b says nothing of other seeds."),
    ],
)
def test_a_conclusion_says_what_it_is_about(
    value: float, low: float, high: float, seeds: tuple[int, int], said: str
) -> None:
    found = Difference(value=value, low=low, high=high, seeds=seeds, over="80 images")
    assert said in found.conclusion("a", "b")
