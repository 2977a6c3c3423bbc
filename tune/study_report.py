"""What a study found: a table of means and spreads by caption kind, and a figure."""

import json
import statistics
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from io import BytesIO
from typing import TYPE_CHECKING, Any

from tune import report
from tune.report import NAMES, TrialResult
from tune.space import Objective, Point

if TYPE_CHECKING:
    from matplotlib.axes import Axes

TABLE, FIGURE, RESULTS = "study.md", "study.png", "results.json"

Group = dict[Point, list[TrialResult]]


def files(
    metric: str,
    choices: Mapping[Objective, Any],
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
        "equal_steps": [asdict(r) for r in equal_steps],
        "equal_time": [asdict(r) for r in equal_time],
    }
    return {
        TABLE: _markdown(metric, choices, steps, time).encode(),
        FIGURE: _figure(metric, steps, time),
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


def _markdown(metric: str, choices: Mapping[Objective, Any], steps: Group, time: Group) -> str:
    shown = columns(metric, [r for group in steps.values() for r in group])
    data = metric.split("/")[0] + "/"
    first = next(iter(steps.values()))[0]
    chance = [f"{first.chance[name]:.3f}" for name in shown]
    rows = [_row(str(point), group, shown) for point, group in steps.items()]
    rows += [_row(f"{point}, Llip's time", group, shown) for point, group in time.items()]
    settings = [f"- {NAMES[objective]}: {choice}" for objective, choice in choices.items()]
    return "\n".join(
        [
            f"| variant | seeds | images | {' | '.join(name.removeprefix(data) for name in shown)} |",
            f"| --- | ---: | ---: | {' | '.join('---:' for _ in shown)} |",
            f"| chance | | | {' | '.join(chance)} |",
            *rows,
            "",
            "Learning rate, initial scale and bias chosen on another seed:",
            "",
            *settings,
            "",
        ]
    )


def _row(name: str, group: Sequence[TrialResult], shown: Sequence[str]) -> str:
    cells = [_spread([r.metrics[n] for r in group if n in r.metrics]) for n in shown]
    return f"| {name} | {len(group)} | {group[0].samples:,} | {' | '.join(cells)} |"


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
    heads = _most_common([s.point.heads for s in summaries if s.point.objective == "llip"])
    tokens = _most_common([s.point.k for s in summaries if s.point.objective == "llip"])
    report.draw(by_k, [s for s in summaries if s.point.objective != "llip" or s.point.heads == heads])
    by_k.axhline(summaries[0].chance, color="grey", linestyle=":", label="chance")
    by_k.set_ylabel(metric, fontsize=8)
    by_k.legend(fontsize=7)
    line = sorted(
        (s for s in summaries if s.point.objective == "llip" and s.point.k == tokens), key=lambda s: s.point.heads or 0
    )
    by_heads.errorbar(
        [str(s.point.heads) for s in line], [s.mean for s in line], yerr=[s.spread or 0.0 for s in line], fmt="o-",
        capsize=3,
    )  # fmt: skip
    by_heads.set_xlabel(f"heads, K={tokens}")
    main = {f"Llip, K={tokens}, {heads} heads": steps[Point(objective="llip", k=tokens, heads=heads)]}
    main |= {NAMES[p.objective]: g for p, g in steps.items() if p.objective != "llip"}
    main |= {f"{NAMES[p.objective]}, Llip's time": g for p, g in time.items()}
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
