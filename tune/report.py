"""What a sweep found: mean and spread over seeds as a table, and the metric against K for each head count as a plot."""

import statistics
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from io import BytesIO
from typing import TYPE_CHECKING

from tune.space import Objective, Point

if TYPE_CHECKING:
    from matplotlib.axes import Axes

NAMES: dict[Objective, str] = {
    "clip": "CLIP",
    "siglip": "SigLIP",
    "llip": "Llip",
    "register": "registers",
    "mean": "uniform mean",
    "learned_query": "learned query",
}
"""Objectives as people write them."""


@dataclass(frozen=True, kw_only=True)
class TrialResult:
    """The last evaluation of one trial."""

    point: Point
    seed: int
    samples: int
    """Images seen by then."""
    budget: int
    """Images that a trial sees when nothing stops it."""
    metrics: dict[str, float] = field(default_factory=dict)
    """Values by metric name; empty for a trial that failed before its first evaluation."""
    chance: dict[str, float] = field(default_factory=dict)
    """Level of guessing by metric name."""

    @property
    def finished(self) -> bool:
        return bool(self.metrics) and self.samples >= self.budget


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
    return Summary(
        point=point,
        mean=statistics.mean(values),
        spread=statistics.stdev(values) if len(values) > 1 else None,
        seeds=len(values),
        samples=min(r.samples for r in group),
        finished=all(r.finished for r in group),
        chance=statistics.mean(r.chance[metric] for r in group),
    )


def best(summaries: Sequence[Summary]) -> Summary:
    """The point with the highest mean among those that saw the whole budget. Raises ValueError where none did."""
    finished = [s for s in summaries if s.finished]
    if not finished:
        raise ValueError("no trial ran to its end, so none is the best; see the errors above")
    return max(finished, key=lambda s: s.mean)


def table(summaries: Sequence[Summary], metric: str) -> str:
    """The summaries as aligned text, best first; stopped points last, with what they had seen."""
    header = ("objective", "K", "heads", metric, "spread", "seeds", "chance", "samples")
    ordered = sorted(summaries, key=lambda s: (not s.finished, -s.mean))
    rows = [header, *(_row(s) for s in ordered)]
    widths = [max(len(row[i]) for row in rows) for i in range(len(header))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    return "\n".join([lines[0], "  ".join("-" * width for width in widths), *lines[1:]])


def _row(s: Summary) -> tuple[str, ...]:
    spread = "" if s.spread is None else f"±{s.spread:.4f}"
    samples = f"{s.samples:,}" + ("" if s.finished else " (stopped)")
    point = s.point
    k, heads = ("" if n is None else str(n) for n in (point.k, point.heads))
    return point.objective, k, heads, f"{s.mean:.4f}", spread, str(s.seeds), f"{s.chance:.4f}", samples


def plot(summaries: Sequence[Summary], metric: str) -> bytes:
    """PNG: the metric against K, a line for each objective and head count; what has no K as a level line.

    Bars and bands are the spread over seeds. Stopped points are hollow and off the lines: they saw fewer images.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7, 4.5), dpi=150, layout="constrained")
    draw(axes, summaries)
    axes.axhline(summaries[0].chance, color="grey", linestyle=":", label="chance")
    axes.set_ylabel(metric)
    axes.legend()
    content = BytesIO()
    figure.savefig(content, format="png")
    pyplot.close(figure)
    return content.getvalue()


def draw(axes: "Axes", summaries: Sequence[Summary]) -> None:
    """The lines of `plot` without its labels."""
    from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

    lines: dict[str, list[Summary]] = defaultdict(list)
    for summary in summaries:
        lines[_line(summary.point)].append(summary)
    for color, (label, line) in enumerate(lines.items()):
        if line[0].point.k is None:
            _level(axes, line[0], label, f"C{color}")
        else:
            _against_k(axes, sorted(line, key=lambda s: s.point.k or 0), label, f"C{color}")
    if any(not s.finished for s in summaries):
        axes.plot([], [], "o", color="grey", markerfacecolor="none", label="stopped early")
    if ks := sorted(set(_ks(summaries))):
        axes.set_xscale("log", base=2)
        axes.xaxis.set_major_locator(FixedLocator(ks))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda k, _: f"{k:g}"))
        axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xlabel("K, image tokens")


def _line(point: Point) -> str:
    name = NAMES[point.objective]
    return name if point.heads is None else f"{name}, {point.heads} head{'s' if point.heads > 1 else ''}"


def _against_k(axes: "Axes", line: Sequence[Summary], label: str, color: str) -> None:
    done, stopped = [s for s in line if s.finished], [s for s in line if not s.finished]
    means, spreads = [s.mean for s in done], [s.spread or 0.0 for s in done]
    axes.errorbar(_ks(done), means, yerr=spreads, fmt="o-", color=color, capsize=3, label=label)
    axes.plot(_ks(stopped), [s.mean for s in stopped], "o", color=color, markerfacecolor="none")


def _ks(line: Sequence[Summary]) -> list[int]:
    return [s.point.k for s in line if s.point.k is not None]


def _level(axes: "Axes", summary: Summary, label: str, color: str) -> None:
    axes.axhline(summary.mean, color=color, linestyle="--", label=label)
    if summary.spread is not None:
        axes.axhspan(summary.mean - summary.spread, summary.mean + summary.spread, color=color, alpha=0.15)
