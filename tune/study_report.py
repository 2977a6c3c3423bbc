"""What a study found: a table of means and spreads by caption kind, and a figure."""

import json
import statistics
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from io import BytesIO
from typing import TYPE_CHECKING, Any

from tune import report
from tune.points import Point
from tune.report import Summary
from tune.results import TrialResult

if TYPE_CHECKING:
    from matplotlib.axes import Axes

NAMES = {
    "clip": "CLIP",
    "siglip": "SigLIP",
    "llip": "Llip",
    "register": "registers",
    "mean": "uniform mean",
    "learned_query": "learned query",
}
"""Objectives as people write them."""
TABLE, FIGURE, PAGE, RESULTS = "study.md", "study.png", "study.html", "results.json"

Group = dict[Point, list[TrialResult]]


def files(
    metric: str,
    choices: Mapping[str, Any],
    equal_steps: Sequence[TrialResult],
    equal_time: Sequence[TrialResult],
) -> dict[str, bytes]:
    """The report by file name. `choices` are the settings of CLIP, SigLIP and Llip; the ablations have Llip's.

    Raises ValueError where no trial has the metric.
    """
    if not any(metric in r.metrics for r in equal_steps):
        raise ValueError(f"no trial of the study has the metric {metric!r}; see the errors above")
    steps, time = _by_point(equal_steps), _by_point(equal_time)
    everything = {
        "choices": {name: asdict(choice) for name, choice in choices.items()},
        "equal_steps": [r.written() for r in equal_steps],
        "equal_time": [r.written() for r in equal_time],
    }
    figure = _figure(metric, steps, time)
    return {
        TABLE: _markdown(metric, choices, steps, time).encode(),
        FIGURE: figure,
        PAGE: _page(metric, choices, steps, time, figure).encode(),
        RESULTS: json.dumps(everything, indent=2).encode(),
    }


def columns(metric: str, results: Sequence[TrialResult]) -> list[str]:
    """The metrics of a table: the one that settings are chosen by, and its set's by kind of caption and over all."""
    data = metric.split("/")[0]
    names = sorted({name for r in results for name in r.metrics} - {metric})
    whole = [n for n in names if n in (f"{data}/text_to_image_map", f"{data}/image_to_text_r1")]
    by_kind = [n for n in names if n.startswith((f"{data}/text_to_image_map/", f"{data}/one_of_20/"))]
    return [metric, *by_kind, *whole]


def _by_point(results: Sequence[TrialResult]) -> Group:
    groups: Group = defaultdict(list)
    for result in results:
        if result.finished:
            groups[result.point].append(result)
    return groups


def _table(metric: str, steps: Group, time: Group) -> list[list[str]]:
    """The head, the chance levels, then a row a variant."""
    shown = columns(metric, [r for group in steps.values() for r in group])
    data = metric.split("/")[0] + "/"
    first = next(iter(steps.values()))[0]
    named = [(str(point), group) for point, group in steps.items()]
    named += [(f"{point}, Llip's time", group) for point, group in time.items()]
    return [
        ["variant", "seeds", "images", *(name.removeprefix(data) for name in shown)],
        ["chance", "", "", *(f"{first.chance[name]:.3f}" for name in shown)],
        *([name, str(len(group)), f"{group[0].samples:,}", *_cells(group, shown)] for name, group in named),
    ]


def _cells(group: Sequence[TrialResult], shown: Sequence[str]) -> list[str]:
    return [_spread([r.metrics[n] for r in group if n in r.metrics]) for n in shown]


CHOSEN = "Learning rate, initial scale and bias chosen on another seed"


def _markdown(metric: str, choices: Mapping[str, Any], steps: Group, time: Group) -> str:
    head, *rows = _table(metric, steps, time)
    rule = ["---", *("---:" for _ in head[1:])]
    settings = [f"- {NAMES[objective]}: {choice}" for objective, choice in choices.items()]
    lines = [f"| {' | '.join(row)} |" for row in (head, rule, *rows)]
    return "\n".join([*lines, "", f"{CHOSEN}:", "", *settings, ""])


def _page(metric: str, choices: Mapping[str, Any], steps: Group, time: Group, figure: bytes) -> str:
    from llip.page import plot, render
    from llip.training.run_folder import git_revision

    head, *rows = _table(metric, steps, time)
    return render(
        "search.html",
        title="Study",
        headlines=[_headline(row, chance=rows[0][3]) for row in rows[1:4]],
        facts={"metric": metric, "commit": git_revision()[:20]},
        verdict=f"{CHOSEN}; means and spreads over seeds",
        command="",
        plots=[plot(FIGURE, figure)],
        head=head,
        rows=rows,
        numbers_from=1,
        notes=[f"{NAMES[objective]}: {choice}" for objective, choice in choices.items()],
    )


def _headline(row: Sequence[str], chance: str) -> tuple[str, str, str]:
    mean, _, spread = row[3].partition(" ± ")
    return row[0], mean, f"± {spread}, chance {chance}" if spread else f"chance {chance}"


def _spread(values: Sequence[float]) -> str:
    if len(values) < 2:
        return f"{values[0]:.3f}" if values else "–"
    return f"{statistics.mean(values):.3f} ± {statistics.stdev(values):.3f}"


def _figure(metric: str, steps: Group, time: Group) -> bytes:
    """PNG: the metric against K; against the heads; by caption kind, for every objective and for equal time."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(15, 4.6), dpi=130, layout="constrained")
    by_k, by_heads, by_kind = figure.subplots(1, 3, width_ratios=(1, 1, 1.5))
    results = [r for group in steps.values() for r in group]
    summaries = report.summarise(results, metric)
    heads = _most_common([_heads(s.point) for s in summaries if _objective(s.point) == "llip"])
    tokens = _most_common([_tokens(s.point) for s in summaries if _objective(s.point) == "llip"])
    draw(by_k, [s for s in summaries if _objective(s.point) != "llip" or _heads(s.point) == heads])
    by_k.axhline(summaries[0].chance, color="grey", linestyle=":", label="chance")
    by_k.set_ylabel(metric, fontsize=8)
    by_k.legend(fontsize=7)
    line = sorted(
        (s for s in summaries if _objective(s.point) == "llip" and _tokens(s.point) == tokens),
        key=lambda s: _heads(s.point) or 0,
    )
    by_heads.errorbar(
        [str(_heads(s.point)) for s in line], [s.mean for s in line], yerr=[s.spread or 0.0 for s in line], fmt="o-",
        capsize=3,
    )  # fmt: skip
    by_heads.set_xlabel(f"heads, K={tokens}")
    llip = next(g for p, g in steps.items() if (_objective(p), _tokens(p), _heads(p)) == ("llip", tokens, heads))
    main = {f"Llip, K={tokens}, {heads} heads": llip}
    main |= {NAMES[_objective(p)]: g for p, g in steps.items() if _objective(p) != "llip"}
    main |= {f"{NAMES[_objective(p)]}, Llip's time": g for p, g in time.items()}
    _bars(by_kind, metric.split("/")[0] + "/text_to_image_map/", main)
    content = BytesIO()
    figure.savefig(content, format="png")
    return content.getvalue()


def _bars(axes: "Axes", prefix: str, groups: Mapping[str, Sequence[TrialResult]]) -> None:
    names = sorted({n for g in groups.values() for r in g for n in r.metrics if n.startswith(prefix)})
    width = 0.85 / len(groups)
    for i, (label, group) in enumerate(groups.items()):
        values = [[r.metrics[n] for r in group] for n in names]
        means = [statistics.mean(v) for v in values]
        spreads = [statistics.stdev(v) if len(v) > 1 else 0.0 for v in values]
        axes.bar(
            [x + (i + 0.5) * width for x in range(len(names))], means, width, yerr=spreads, label=label, color=f"C{i}"
        )
    axes.set_xticks([x + 0.42 for x in range(len(names))], [n.removeprefix(prefix) for n in names])
    axes.set_ylabel("text→image mAP")
    axes.legend(fontsize=7, ncols=4, loc="lower center", bbox_to_anchor=(0.5, 1.0))


def _most_common(values: Sequence[int | None]) -> int | None:
    return statistics.mode(values)


def draw(axes: "Axes", summaries: Sequence[Summary]) -> None:
    """The metric against K, a line for each objective and head count; what has no K as a level line."""
    from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

    lines: dict[str, list[Summary]] = defaultdict(list)
    for summary in summaries:
        lines[_label(summary.point)].append(summary)
    for color, (label, line) in enumerate(lines.items()):
        if _tokens(line[0].point) is None:
            _level(axes, line[0], label, f"C{color}")
        else:
            line = sorted(line, key=lambda s: _tokens(s.point) or 0)
            means, spreads = [s.mean for s in line], [s.spread or 0.0 for s in line]
            places = [_tokens(s.point) or 0 for s in line]
            axes.errorbar(places, means, yerr=spreads, fmt="o-", color=f"C{color}", capsize=3, label=label)
    if ks := sorted({k for s in summaries if (k := _tokens(s.point)) is not None}):
        axes.set_xscale("log", base=2)
        axes.xaxis.set_major_locator(FixedLocator(ks))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda k, _: f"{k:g}"))
        axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xlabel("K, image tokens")


def _level(axes: "Axes", summary: Summary, label: str, color: str) -> None:
    axes.axhline(summary.mean, color=color, linestyle="--", label=label)
    if summary.spread is not None:
        axes.axhspan(summary.mean - summary.spread, summary.mean + summary.spread, color=color, alpha=0.15)


def _label(point: Point) -> str:
    name, heads = NAMES[_objective(point)], _heads(point)
    return name if heads is None else f"{name}, {heads} head{'s' if heads > 1 else ''}"


def _objective(point: Point) -> str:
    return str(point.field("objective"))


def _tokens(point: Point) -> int | None:
    found: int | None = point.field("model.vision.tokens")
    return found


def _heads(point: Point) -> int | None:
    found: int | None = point.field("model.head.heads")
    return found
