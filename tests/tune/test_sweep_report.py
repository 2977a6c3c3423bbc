import io
import statistics

import pytest
from PIL import Image

from tune.report import TrialResult, best, plot, summarise, table
from tune.space import Point

METRIC = "scenes/text_to_image_map"


def result(point: Point, seed: int, value: float | None, *, samples: int = 1000) -> TrialResult:
    metrics = {} if value is None else {METRIC: value}
    return TrialResult(point=point, seed=seed, samples=samples, budget=1000, metrics=metrics, chance={METRIC: 0.02})


LLIP = Point(objective="llip", k=4, heads=2)
NARROW = Point(objective="llip", k=1, heads=2)
SIGLIP = Point(objective="siglip")
RESULTS = [
    result(LLIP, 0, 0.5),
    result(LLIP, 1, 0.7),
    result(NARROW, 0, 0.9, samples=500),
    result(NARROW, 1, 0.4),
    result(SIGLIP, 0, 0.3),
    result(SIGLIP, 1, None),
]


def test_seeds_are_averaged_and_a_failed_trial_is_not_counted() -> None:
    llip, narrow, siglip = summarise(RESULTS, METRIC)
    assert (llip.point, llip.mean, llip.seeds) == (LLIP, pytest.approx(0.6), 2)
    assert llip.spread == pytest.approx(statistics.stdev([0.5, 0.7]))
    assert (siglip.mean, siglip.spread, siglip.seeds) == (0.3, None, 1)
    assert (narrow.finished, narrow.samples) == (False, 500)


def test_a_stopped_point_is_never_the_best() -> None:
    assert best(summarise(RESULTS, METRIC)).point == LLIP
    with pytest.raises(ValueError, match="no trial ran to its end"):
        best(summarise([result(LLIP, 0, 0.9, samples=999)], METRIC))


def test_table_has_the_best_first_and_stopped_points_last() -> None:
    lines = table(summarise(RESULTS, METRIC), METRIC).splitlines()
    assert lines[0].split() == ["objective", "K", "heads", METRIC, "spread", "seeds", "chance", "samples"]
    assert lines[2].split() == ["llip", "4", "2", "0.6000", "±0.1414", "2", "0.0200", "1,000"]
    assert lines[3].split() == ["siglip", "0.3000", "1", "0.0200", "1,000"]
    assert lines[4].split()[-2:] == ["500", "(stopped)"]


def test_an_unknown_metric_is_refused_with_those_that_exist() -> None:
    with pytest.raises(ValueError, match=f"no trial has the metric 'top1'; there are {METRIC}"):
        summarise(RESULTS, "top1")


def test_plot_draws_every_point() -> None:
    content = plot(summarise(RESULTS, METRIC), METRIC)
    fewer = plot(summarise(RESULTS[:2], METRIC), METRIC)
    assert Image.open(io.BytesIO(content)).size == (1050, 675)
    assert content != fewer
