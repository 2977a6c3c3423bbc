"""Figures of a sweep: the metric against each varied setting, which of them matter, and all at once."""

import warnings
from collections import defaultdict
from collections.abc import Mapping, Sequence
from io import BytesIO
from typing import TYPE_CHECKING, Any

from llip.config import TrainingConfig
from llip.fields import value_of
from tune.axes import RECIPE, Axis
from tune.points import Point
from tune.report import Summary, written

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

METRIC, IMPORTANCE, PARALLEL = "sweep.png", "importance.png", "parallel.png"
ENOUGH = 8
"""Finished points from which on it is asked which settings matter."""
LINES = 8
"""Most lines of a panel; where there would be more, its points stand alone."""


def figures(
    summaries: Sequence[Summary], metric: str, axes: Sequence[Axis], configs: Mapping[str, TrainingConfig]
) -> dict[str, bytes]:
    """PNG by file name; `configs` are the configurations by the point's name. Importance and parallel coordinates need
    two varied settings and enough finished points."""
    found = {METRIC: against_each(summaries, metric, axes)}
    finished = [s for s in summaries if s.finished]
    varied = [axis for axis in axes if len({_known(axis, s.point, configs) for s in finished}) > 1]
    if len(finished) >= ENOUGH and len(varied) > 1 and len({s.mean for s in finished}) > 1:
        found |= _of_study(finished, metric, varied, configs)
    return found


def against_each(summaries: Sequence[Summary], metric: str, axes: Sequence[Axis]) -> bytes:
    """The metric against each varied setting, a panel for each.

    Bars are the spread over seeds. Stopped points are hollow and off the lines: they saw fewer images. A point to which
    a setting means nothing is a level line in its panel.
    """
    from matplotlib.figure import Figure

    columns = min(3, len(axes))
    rows = -(-len(axes) // columns)
    figure = Figure(figsize=(5.2 * columns, 4 * rows), dpi=130, layout="constrained")
    panels = figure.subplots(rows, columns, squeeze=False).flat
    for axis, panel in zip(axes, panels, strict=False):
        _panel(panel, summaries, axis, axes)
        panel.axhline(summaries[0].chance, color="grey", linestyle=":", label="chance")
        panel.set_xlabel(axis.label)
        panel.set_ylabel(metric, fontsize=8)
        panel.legend(fontsize=7)
    for panel in list(panels)[len(axes) :]:
        panel.remove()
    return _png(figure)


def _panel(panel: "Axes", summaries: Sequence[Summary], axis: Axis, axes: Sequence[Axis]) -> None:
    lines: dict[str, list[Summary]] = defaultdict(list)
    for summary in summaries:
        lines[_others(summary.point, axis, axes)].append(summary)
    levels = {label: line for label, line in lines.items() if line[0].point.field(axis.path) is None}
    drawn = {label: line for label, line in lines.items() if label not in levels}
    place = _places(panel, axis, [s for line in drawn.values() for s in line])
    joined = len(drawn) <= LINES and any(len(line) > 1 for line in drawn.values())
    if not joined:
        drawn = {"": [s for line in drawn.values() for s in line]}
    for color, (label, line) in enumerate(drawn.items()):
        _line(panel, sorted(line, key=lambda s: place(s)), place, label, f"C{color}", "o-" if joined else "o")
    for color, (label, line) in enumerate(levels.items(), len(drawn)):
        if len(levels) <= LINES:
            panel.axhline(line[0].mean, color=f"C{color}", linestyle="--", label=label)
    if any(not s.finished for s in summaries):
        panel.plot([], [], "o", color="grey", markerfacecolor="none", label="stopped early")


def _others(point: Point, axis: Axis, axes: Sequence[Axis]) -> str:
    """The values of the other settings, which points on one line share."""
    parts = [
        written(point.field(a.path)) if a.path == RECIPE else f"{a.label} {written(point.field(a.path))}"
        for a in axes
        if a.path != axis.path and point.field(a.path) is not None
    ]
    return ", ".join(parts)


def _places(panel: "Axes", axis: Axis, summaries: Sequence[Summary]) -> Any:
    """Position of a point on the axis of a setting: numbers at their value, everything else side by side."""
    values = [s.point.field(axis.path) for s in summaries]
    number = all(isinstance(v, (int, float)) and not isinstance(v, bool) for v in values)
    if number and values:
        listed = sorted(set(values)) if axis.distribution is None else []
        wide = min(values) > 0 and max(values) >= 8 * min(values)
        if (axis.distribution and axis.distribution.kind == "loguniform") or (listed and wide):
            panel.set_xscale("log")
        if listed:
            panel.set_xticks(listed, [written(v) for v in listed])
            panel.minorticks_off()
        return lambda s: s.point.field(axis.path)
    order = list(dict.fromkeys(values))
    panel.set_xticks(range(len(order)), [written(v) for v in order])
    return lambda s: order.index(s.point.field(axis.path))


def _line(panel: "Axes", line: Sequence[Summary], place: Any, label: str, color: str, style: str) -> None:
    done, stopped = [s for s in line if s.finished], [s for s in line if not s.finished]
    means, spreads = [s.mean for s in done], [s.spread or 0.0 for s in done]
    panel.errorbar([place(s) for s in done], means, yerr=spreads, fmt=style, color=color, capsize=3, label=label)
    panel.plot([place(s) for s in stopped], [s.mean for s in stopped], "o", color=color, markerfacecolor="none")


def _known(axis: Axis, point: Point, configs: Mapping[str, TrainingConfig]) -> Any:
    return point.recipe if axis.path == RECIPE else value_of(configs[point.name], axis.path)


def _of_study(
    finished: Sequence[Summary], metric: str, axes: Sequence[Axis], configs: Mapping[str, TrainingConfig]
) -> dict[str, bytes]:
    """Importances and parallel coordinates, as Optuna has them, of a study made from the results."""
    import optuna
    from matplotlib import pyplot
    from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution

    distributions: dict[str, BaseDistribution] = {}
    for axis in axes:
        known = axis.distribution
        if known is None:
            values = list(dict.fromkeys(written(_known(axis, s.point, configs)) for s in finished))
            distributions[axis.label] = CategoricalDistribution(values)
        elif known.kind == "randint":
            distributions[axis.label] = IntDistribution(int(known.low), int(known.high))
        else:
            distributions[axis.label] = FloatDistribution(known.low, known.high, log=known.kind == "loguniform")
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(direction="maximize")
    for s in finished:
        values_of = {a.label: _known(a, s.point, configs) for a in axes}
        params = {a.label: v if a.distribution else written(v) for a, v in zip(axes, values_of.values(), strict=True)}
        if all(d._contains(d.to_internal_repr(params[name])) for name, d in distributions.items()):
            study.add_trial(optuna.trial.create_trial(params=params, distributions=distributions, value=s.mean))
    from optuna.visualization import matplotlib as optuna_figures

    importances = optuna.importance.get_param_importances(
        study, evaluator=optuna.importance.FanovaImportanceEvaluator(seed=0)
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        panel: Any = optuna_figures.plot_parallel_coordinate(study, target_name=metric)
    parallel = _png(panel.figure)
    pyplot.close(panel.figure)
    return {IMPORTANCE: _bars(importances, metric), PARALLEL: parallel}


def _bars(importances: Mapping[str, float], metric: str) -> bytes:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 1 + 0.5 * len(importances)), dpi=130, layout="constrained")
    panel = figure.subplots()
    bars = panel.barh(list(importances)[::-1], list(importances.values())[::-1])
    panel.bar_label(bars, fmt="%.2f", padding=3)
    panel.set_xlabel(f"share of the variance of {metric} (fANOVA)", fontsize=8)
    panel.set_xlim(0, 1.1)
    return _png(figure)


def _png(figure: "Figure") -> bytes:
    content = BytesIO()
    figure.savefig(content, format="png")
    return content.getvalue()
