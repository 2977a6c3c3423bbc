"""Table of a sweep: mean and spread over seeds, and what can be told apart."""

import re
import statistics
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pipelines.command import brief
from tune.axes import Axis
from tune.points import Point
from tune.results import TrialResult, left_chance


@dataclass(frozen=True, kw_only=True)
class Summary:
    """One point of the space over its seeds."""

    point: Point
    mean: float
    spread: float | None
    """Sample standard deviation over seeds; None for one seed."""
    seeds: int
    samples: int
    """Images seen, the least over the seeds."""
    finished: bool
    """Whether every seed saw the whole budget: only then is it comparable with the others."""
    chance: float
    parts: Mapping[str, tuple[float, float]]
    """Parts of the metric, each with its mean and its chance level; empty for most metrics."""


def summarise(results: Sequence[TrialResult], metric: str) -> list[Summary]:
    """Points in the order of the sweep, those with an evaluation. Raises ValueError for a metric that no trial has."""
    evaluated = [r for r in results if r.metrics]
    if evaluated and not any(metric in r.metrics for r in evaluated):
        raise ValueError(f"no trial has the metric {metric!r}; there are {', '.join(sorted(evaluated[0].metrics))}")
    groups: dict[Point, list[TrialResult]] = defaultdict(list)
    for result in evaluated:
        groups[result.point].append(result)
    return [_summary(point, group, metric) for point, group in groups.items()]


def _summary(point: Point, group: list[TrialResult], metric: str) -> Summary:
    values = [r.metrics[metric] for r in group]
    stem = re.sub(r"_over_\w+$", "", metric) + "/"
    parts = [name for name in group[0].metrics if name.startswith(stem)]
    return Summary(
        point=point,
        mean=statistics.mean(values),
        spread=statistics.stdev(values) if len(values) > 1 else None,
        seeds=len(values),
        samples=min(r.samples for r in group),
        finished=all(r.finished for r in group),
        chance=statistics.mean(r.chance[metric] for r in group),
        parts={
            name.removeprefix(stem): (
                statistics.mean(r.metrics[name] for r in group),
                statistics.mean(r.chance[name] for r in group),
            )
            for name in parts
        },
    )


def best(summaries: Sequence[Summary]) -> Summary:
    """The point with the highest mean among those that saw the whole budget. Raises ValueError where none did."""
    finished = [s for s in summaries if s.finished]
    if not finished:
        raise ValueError("no trial ran to its end, so none is the best; see the errors above")
    return max(finished, key=lambda s: s.mean)


def verdict(summaries: Sequence[Summary]) -> str:
    """A sentence on whether the differences between the means can be told from chance.

    Two points are told apart where their means differ by more than the spreads of both together, in quadrature; a point
    of one seed has the median spread of the others.
    """
    first = best(summaries)
    others = sorted((s for s in summaries if s.finished and s is not first), key=lambda s: -s.mean)
    if not left_chance(first.mean, first.chance):
        return f"no point has left chance ({first.chance:.4f}): train longer before anything is compared"
    if not others:
        return f"{first.point} is the only point that ran to its end"
    known = [s.spread for s in (first, *others) if s.spread is not None]
    if not known:
        return f"best {first.point}; one seed a point has no spread, so --seeds 2 or more tells what differences mean"
    usual = statistics.median(known)

    def spread(s: Summary) -> float:
        return usual if s.spread is None else s.spread

    close = [s for s in others if first.mean - s.mean <= (spread(first) ** 2 + spread(s) ** 2) ** 0.5]
    if not close:
        return f"best {first.point}, by more than the spread"
    named = ", ".join(str(s.point) for s in close[:4]) + (f" and {len(close) - 4} more" if len(close) > 4 else "")
    return f"best {first.point}, by less than the spread: not told apart from {named}"


def table(summaries: Sequence[Summary], metric: str, axes: Sequence[Axis]) -> str:
    """The summaries as aligned text, best first; stopped points last, with what they had seen."""
    return _aligned(_table(summaries, metric, axes))


def _aligned(rows: Sequence[tuple[str, ...]]) -> str:
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    return "\n".join([lines[0], "  ".join("-" * width for width in widths), *lines[1:]])


def _table(summaries: Sequence[Summary], metric: str, axes: Sequence[Axis]) -> list[tuple[str, ...]]:
    header = (*(axis.label for axis in axes), metric, "spread", "seeds", "chance", "samples")
    return [header, *(_row(s, axes) for s in _ordered(summaries))]


def _ordered(summaries: Sequence[Summary]) -> list[Summary]:
    return sorted(summaries, key=lambda s: (not s.finished, -s.mean))


def _parts(summaries: Sequence[Summary]) -> list[tuple[str, ...]]:
    """Points × what the metric is made of, the chance levels in the first row; empty where that is nothing."""
    names = list(dict.fromkeys(name for s in summaries for name in s.parts))
    if not names:
        return []
    chance = {name: level for s in summaries for name, (_, level) in s.parts.items()}
    means = [(str(s.point), {name: f"{mean:.3f}" for name, (mean, _) in s.parts.items()}) for s in _ordered(summaries)]
    rows = [(point, *(of_point.get(name, "") for name in names)) for point, of_point in means]
    return [("point", *names), ("chance", *(f"{chance[name]:.3f}" for name in names)), *rows]


def parts_table(summaries: Sequence[Summary]) -> str:
    """Parts of the metric, as aligned text; empty where it has none."""
    rows = _parts(summaries)
    return _aligned(rows) if rows else ""


def markdown(summaries: Sequence[Summary], metric: str, axes: Sequence[Axis], command: str) -> str:
    """Description of a sweep in MLflow: the verdict, the table, the command that trains the best point."""
    lines = [f"**{verdict(summaries)}**", ""]
    for head, *rows in filter(None, (_table(summaries, metric, axes), _parts(summaries))):
        lines += [*(f"| {' | '.join(row)} |" for row in (head, ["---"] * len(head), *rows)), ""]
    return "\n".join([*lines, "```", command, "```", ""])


def page(
    title: str,
    summaries: Sequence[Summary],
    metric: str,
    axes: Sequence[Axis],
    *,
    command: str,
    notes: Sequence[str],
    plots: Mapping[str, bytes],
) -> str:
    """The sweep as one HTML page; `plots` are PNG by file name."""
    from llip.page import plot, render
    from llip.runs.run_folder import git_revision

    head, *rows = _table(summaries, metric, axes)
    first = best(summaries)
    return render(
        "search.html",
        title=title,
        headlines=[(f"{metric}, best point", f"{first.mean:.3f}", f"chance {first.chance:.3f}")],
        facts={"points": str(len(summaries)), "commit": git_revision()[:20]},
        verdict=verdict(summaries),
        command=command,
        plots=[plot(name, content) for name, content in plots.items()],
        head=head,
        rows=rows,
        numbers_from=len(axes),
        parts=_parts(summaries),
        notes=notes,
    )


def _row(s: Summary, axes: Sequence[Axis]) -> tuple[str, ...]:
    spread = "" if s.spread is None else f"±{s.spread:.4f}"
    samples = f"{s.samples:,}" + ("" if s.finished else " (stopped)")
    values = [written(s.point.field(axis.path)) for axis in axes]
    return *values, f"{s.mean:.4f}", spread, str(s.seeds), f"{s.chance:.4f}", samples


def written(value: Any) -> str:
    """A value in a table; nothing where a setting means nothing to a model."""
    return "" if value is None else value if isinstance(value, str) else brief(value)
