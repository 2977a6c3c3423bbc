"""Intervals against literal resampling, their coverage, and what they say where nothing varies."""

import numpy as np
import pytest
from sklearn.metrics import f1_score

from llip.evaluation import bootstrap, zero_shot
from llip.evaluation.item_scores import UNITS, ItemScores
from llip.evaluation.metrics import Metric, logged

SCORES = np.random.default_rng(0).random(40)
IMAGES, CAPTIONS = np.arange(40) // 2, np.arange(40) % 7
STRATA = np.arange(40) % 3
PREDICTED = np.where(SCORES < 0.6, STRATA, np.arange(40) % 5)

CASES = {
    "images": ItemScores(score_I=SCORES, chance=0.1, units={"images": np.arange(40)}),
    "clusters": ItemScores(score_I=SCORES, chance=0.1, units={"images": IMAGES}),
    "crossed": ItemScores(score_I=SCORES, chance=0.1, units={"images": IMAGES, "captions": CAPTIONS}),
    "strata": ItemScores(score_I=SCORES, chance=0.1, units={"images": np.arange(40)}, stratum_I=STRATA),
    "macro F1": ItemScores(
        score_I=(PREDICTED == STRATA).astype(float),
        chance=0.1,
        units={"images": IMAGES},
        stratum_I=STRATA,
        predicted_I=PREDICTED,
    ),
}


def literal(scores: ItemScores, count: int, seed: int) -> list[float]:
    """Replicate by replicate: units drawn one by one, items repeated as often as their units were drawn."""
    streams = {sort: np.random.default_rng([seed, UNITS.index(sort)]) for sort in scores.units}
    found = []
    for _ in range(count):
        drawn = {}
        for sort, stream in streams.items():
            present = sorted(set(scores.units[sort].tolist()))
            drawn[sort] = [present[place] for place in stream.integers(len(present), size=len(present))]
        items = [
            item
            for item in range(len(scores.score_I))
            for _ in range(int(np.prod([drawn[sort].count(of[item]) for sort, of in scores.units.items()])))
        ]
        if scores.predicted_I is not None and scores.stratum_I is not None:
            label, predicted = scores.stratum_I[items], scores.predicted_I[items]
            drawn = f1_score(label, predicted, average="macro", labels=np.unique(label))
            found.append(2 * scores.value - float(drawn))  # the basic bootstrap
            continue
        strata = scores.stratum_I if scores.stratum_I is not None else np.zeros(len(scores.score_I), int)
        of_strata: dict[int, list[float]] = {}
        for item in items:
            of_strata.setdefault(int(strata[item]), []).append(float(scores.score_I[item]))
        found.append(float(np.mean([np.mean(of) for of in of_strata.values()])))
    return found


@pytest.mark.parametrize("name", CASES)
def test_replicates_are_those_of_literal_resampling(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = literal(CASES[name], 50, seed=3)
    np.testing.assert_allclose(bootstrap.replicates(CASES[name], 50, seed=3), expected, rtol=1e-6)
    monkeypatch.setattr(bootstrap, "WEIGHTS", 40 * 7)  # seven replicates at once
    np.testing.assert_allclose(bootstrap.replicates(CASES[name], 50, seed=3), expected, rtol=1e-6)


def test_the_value_is_the_mean_and_over_strata_that_of_the_means() -> None:
    assert CASES["crossed"].value == pytest.approx(SCORES.mean())
    assert CASES["strata"].value == pytest.approx(np.mean([SCORES[s == STRATA].mean() for s in range(3)]))
    assert CASES["crossed"].over == "20 images × 7 captions" and CASES["images"].over == "40 images"


def test_nineteen_of_twenty_intervals_hold_the_true_mean() -> None:
    rng, held = np.random.default_rng(1), 0
    for _ in range(300):
        right = (rng.random(120) < 0.3).astype(float)
        metric = bootstrap.judged(ItemScores(score_I=right, chance=0.1, units={"images": np.arange(120)}))
        assert metric.low is not None and metric.high is not None and metric.low <= metric.value <= metric.high
        held += metric.low <= 0.3 <= metric.high
    assert 0.91 <= held / 300 <= 0.98


def test_intervals_of_macro_f1_hold_the_true_one_though_classes_have_few_images() -> None:
    """A hundred classes of about five images: F1 of each is biased, and the mean has an interval not much wider."""
    rng, held = np.random.default_rng(6), {"basic": 0, "percentile": 0}
    for _ in range(100):
        label = rng.integers(0, 100, 500)
        predicted = np.where(rng.random(500) < 0.5, label, rng.integers(0, 100, 500))
        scores = zero_shot.macro_f1(label, predicted, 100)
        replicates = bootstrap.replicates(scores, 200)
        for name, value_B in (("basic", replicates), ("percentile", 2 * scores.value - replicates)):
            low, high = bootstrap.interval(value_B)
            held[name] += low <= 0.505 <= high  # precision and recall of every class
    assert held["basic"] >= 88 and held["percentile"] < 75, held


def test_an_interval_holds_the_value_and_stays_within_what_a_metric_can_be() -> None:
    assert bootstrap.ends(np.linspace(-0.2, 1.3, 99), 0.5) == (0.0, 1.0)
    assert bootstrap.ends(np.linspace(0.4, 0.6, 41), 0.7) == pytest.approx((0.405, 0.7))


def test_items_of_one_unit_are_no_further_evidence() -> None:
    """Four decisions of an image that agree are worth one; as images of their own they would halve the interval."""
    right = (np.random.default_rng(2).random(100) < 0.4).astype(float)
    alone = bootstrap.judged(ItemScores(score_I=right, chance=0, units={"images": np.arange(100)}))
    together, apart = (
        bootstrap.judged(ItemScores(score_I=np.repeat(right, 4), chance=0, units={"images": units}))
        for units in (np.repeat(np.arange(100), 4), np.arange(400))
    )
    width = [m.high - m.low for m in (alone, together, apart) if m.high is not None and m.low is not None]
    assert width[1] == pytest.approx(width[0]) and width[2] == pytest.approx(width[0] / 2, rel=0.15)


def test_few_captions_widen_the_interval_of_many_images() -> None:
    """Decisions whose scores are those of their caption: images alone would say that they are known."""
    score = np.random.default_rng(3).random(10)[np.arange(500) % 10]
    units = {"images": np.arange(500), "captions": np.arange(500) % 10}
    crossed = bootstrap.judged(ItemScores(score_I=score, chance=0, units=units))
    by_image = bootstrap.judged(ItemScores(score_I=score, chance=0, units={"images": units["images"]}))
    assert crossed.high - crossed.low > 4 * (by_image.high - by_image.low)  # type: ignore[operator]


@pytest.mark.parametrize(("score", "low", "high"), [(1.0, 0.025 ** (1 / 30), 1.0), (0.0, 0.0, 1 - 0.025 ** (1 / 30))])
def test_where_all_items_score_the_same_the_exact_bound_stands(score: float, low: float, high: float) -> None:
    units = {"images": np.arange(60), "captions": np.arange(60) % 30}
    found = bootstrap.judged(ItemScores(score_I=np.full(60, score), chance=0.5, units=units))
    assert (found.low, found.high) == pytest.approx((low, high))


def test_one_unit_has_no_interval() -> None:
    found = bootstrap.judged(ItemScores(score_I=np.array([0.0, 1.0]), chance=0.5, units={"images": np.array([4, 4])}))
    assert found == Metric(0.5, 0.5) and found.interval == "–"
    assert found.stored() == {"value": 0.5, "chance": 0.5}


def test_the_log_gets_all_values_and_the_ends_of_the_headlines_intervals() -> None:
    metric = Metric(0.5, 0.1, 0.4, 0.6, "9 images")
    assert logged({"a/top1": metric, "a/top5": metric, "b/top1": Metric(0.2, 0.1)}) == {
        "a/top1": 0.5,
        "a/top5": 0.5,
        "b/top1": 0.2,
        "a/top1_low": 0.4,
        "a/top1_high": 0.6,
    }
