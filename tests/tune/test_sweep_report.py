"""Tables, what they claim, and figures."""

import io
import statistics

import pytest
from PIL import Image

from llip.config import TrainingConfig
from tune.axes import Axis, drawn, grid, parse_all
from tune.figures import IMPORTANCE, PARALLEL, against_each, figures
from tune.points import Point, Space, select
from tune.report import Summary, best, markdown, page, parts_table, summarise, table, verdict
from tune.results import Evaluation, TrialResult

METRIC = "scenes/text_to_image_map"
AXES = parse_all(("recipe=siglip_tiny,llip_tiny_k8", "k=1,4", "heads=2,4"), ())


def result(point: Point, seed: int, value: float | None, *, samples: int = 1000) -> TrialResult:
    found = Evaluation(step=1, samples=samples, metrics={METRIC: value or 0.0}, chance={METRIC: 0.02})
    state = "failed" if value is None else "finished" if samples == 1000 else "stopped"
    evaluations = () if value is None else (found,)
    return TrialResult(point=point, seed=seed, budget=1000, evaluations=evaluations, state=state)  # type: ignore[arg-type]


SPACE = Space(AXES, "llip_tiny_k8", {})
POINTS = {name: point for name, (point, _) in select(SPACE, grid(AXES, None)).points.items()}
LLIP, NARROW, SIGLIP = (POINTS[n] for n in ("llip_tiny_k8-k4-heads2", "llip_tiny_k8-k1", "siglip_tiny"))
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
    assert (llip.point, llip.seeds) == (LLIP, 2)
    assert llip.mean == pytest.approx(0.6)
    assert llip.spread == pytest.approx(statistics.stdev([0.5, 0.7]))
    assert (siglip.mean, siglip.spread, siglip.seeds) == (0.3, None, 1)
    assert (narrow.finished, narrow.samples) == (False, 500)


def test_a_stopped_point_is_never_the_best() -> None:
    assert best(summarise(RESULTS, METRIC)).point == LLIP
    with pytest.raises(ValueError, match="no trial ran to its end"):
        best(summarise([result(LLIP, 0, 0.9, samples=999)], METRIC))


def test_table_has_the_best_first_and_stopped_points_last() -> None:
    lines = table(summarise(RESULTS, METRIC), METRIC, AXES).splitlines()
    assert lines[0].split() == ["recipe", "k", "heads", METRIC, "spread", "seeds", "chance", "samples"]
    assert lines[2].split() == ["llip_tiny_k8", "4", "2", "0.6000", "±0.1414", "2", "0.0200", "1,000"]
    assert lines[3].split() == ["siglip_tiny", "0.3000", "1", "0.0200", "1,000"]
    assert lines[4].split()[:2] == ["llip_tiny_k8", "1"] and lines[4].split()[-2:] == ["500", "(stopped)"]


def test_a_mean_over_types_is_shown_with_each_type() -> None:
    def of(point: Point, seed: int, *values: float) -> TrialResult:
        names = (f"{METRIC}_over_types", f"{METRIC}/object", f"{METRIC}/ground", f"{METRIC}_other")
        levels = dict(zip(names, (0.02, 0.01, 0.03, 0.5), strict=True))
        found = Evaluation(step=1, samples=1000, metrics=dict(zip(names, values, strict=True)), chance=levels)
        return TrialResult(point=point, seed=seed, budget=1000, evaluations=(found,), state="finished")

    results = [of(SIGLIP, 0, 0.2, 0.1, 0.3, 0.9), of(LLIP, 0, 0.5, 0.4, 0.6, 0.9), of(LLIP, 1, 0.7, 0.6, 0.8, 0.9)]
    summaries = summarise(results, f"{METRIC}_over_types")
    head, _, *lines = (line.split() for line in parts_table(summaries).splitlines())
    assert head == ["point", "object", "ground"]
    assert lines == [["chance", "0.010", "0.030"], [str(LLIP), "0.500", "0.700"], [str(SIGLIP), "0.100", "0.300"]]
    note = markdown(summaries, METRIC, AXES, "train it")
    html = page("Sweep", summaries, METRIC, AXES, command="train it", notes=[], plots={})
    assert f"| {LLIP} | 0.500 | 0.700 |" in note and "What the metric is made of" in html and "0.700" in html
    assert parts_table(summarise(RESULTS, METRIC)) == ""


def test_the_page_and_the_note_have_the_verdict_the_command_and_every_point() -> None:
    summaries = summarise(RESULTS, METRIC)
    html = page(
        "Sweep a<b",
        summaries,
        METRIC,
        AXES,
        command="train it",
        notes=["one failed"],
        plots={"sweep.png": against_each(summaries, METRIC, AXES)},
    )
    note = markdown(summaries, METRIC, AXES, "train it")
    for text in (html, note):
        assert verdict(summaries) in text and "train it" in text
        assert all(f"{s.mean:.4f}" in text for s in summaries)
    assert "Sweep a&lt;b" in html and "one failed" in html and "data:image/png;base64," in html


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"llip_tiny_k8-k1": (0.30, 0.31), "siglip_tiny": (0.50, 0.51)}, "best siglip_tiny, by more than the spread"),
        ({"llip_tiny_k8-k1": (0.30, 0.40), "siglip_tiny": (0.33, 0.43)}, "less than the spread: not told apart from"),
        ({"llip_tiny_k8-k1": (0.02, 0.02), "siglip_tiny": (0.021, 0.022)}, "no point has left chance (0.0200)"),
        ({"llip_tiny_k8-k1": (0.3,), "siglip_tiny": (0.5,)}, "one seed a point has no spread"),
        ({"siglip_tiny": (0.3,)}, "the only point that ran to its end"),
    ],
)
def test_a_difference_counts_where_it_is_larger_than_the_spread(
    values: dict[str, tuple[float, ...]], message: str
) -> None:
    results = [result(POINTS[n], seed, v) for n, several in values.items() for seed, v in enumerate(several)]
    assert message in verdict(summarise(results, METRIC))


def test_an_unknown_metric_is_refused_with_those_that_exist() -> None:
    with pytest.raises(ValueError, match=f"no trial has the metric 'top1'; there are {METRIC}"):
        summarise(RESULTS, "top1")


def drawn_summaries(axes: tuple[Axis, ...], count: int) -> tuple[list[Summary], dict[str, TrainingConfig]]:
    found = select(Space(axes, "llip_tiny_k8", {}), drawn(axes), most=count)
    results = [
        result(point, 0, 0.1 + 0.05 * config.model.vision.tokens + 100 * config.optimizer.learning_rate)
        for point, config in found.points.values()
    ]
    return summarise(results, METRIC), {name: config for name, (_, config) in found.points.items()}


def test_figures_have_a_panel_for_each_setting_and_importance_where_points_suffice() -> None:
    configs = {name: config for name, (_, config) in select(SPACE, grid(AXES, None)).points.items()}
    assert list(figures(summarise(RESULTS, METRIC), METRIC, AXES, configs)) == ["sweep.png"]
    axes = parse_all(("k=1,4,16", "learning_rate=loguniform:1e-4:1e-3", "temperature=uniform:1:10"), ())
    found = figures(*_before_last(drawn_summaries(axes, 12), axes))
    assert set(found) == {"sweep.png", IMPORTANCE, PARALLEL}
    wide = {name: Image.open(io.BytesIO(content)).size for name, content in found.items()}
    assert wide["sweep.png"] == (2028, 520)


def _before_last(
    found: tuple[list[Summary], dict[str, TrainingConfig]], axes: tuple[Axis, ...]
) -> tuple[list[Summary], str, tuple[Axis, ...], dict[str, TrainingConfig]]:
    summaries, configs = found
    return summaries, METRIC, axes, configs
