"""What a sweep found: mean and spread over seeds as a table, and the metric against K for each head count as a plot."""

import statistics
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from io import BytesIO

from tune.space import Point


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
    heads = "" if point.heads is None else str(point.heads)
    return point.objective, str(point.k), heads, f"{s.mean:.4f}", spread, str(s.seeds), f"{s.chance:.4f}", samples


def plot(summaries: Sequence[Summary], metric: str) -> bytes:
    """PNG: the metric against K with the spread over seeds, a line a head count; other objectives as level lines.

    Stopped points are hollow and off the lines: they saw fewer images.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot
    from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

    figure, axes = pyplot.subplots(figsize=(7, 4.5), dpi=150, layout="constrained")
    mixed = [s for s in summaries if s.point.heads is not None]
    counts = sorted({s.point.heads for s in mixed if s.point.heads is not None})
    for color, heads in enumerate(counts):
        line = sorted((s for s in mixed if s.point.heads == heads), key=lambda s: s.point.k)
        done, stopped = [s for s in line if s.finished], [s for s in line if not s.finished]
        label = f"Llip, {heads} head{'s' if heads > 1 else ''}"
        ks, means, spreads = [s.point.k for s in done], [s.mean for s in done], [s.spread or 0.0 for s in done]
        axes.errorbar(ks, means, yerr=spreads, fmt="o-", color=f"C{color}", capsize=3, label=label)
        axes.plot(
            [s.point.k for s in stopped], [s.mean for s in stopped], "o", color=f"C{color}", markerfacecolor="none"
        )
    for color, summary in enumerate((s for s in summaries if s.point.heads is None), start=len(counts)):
        name = {"clip": "CLIP", "siglip": "SigLIP"}[summary.point.objective]
        axes.axhline(summary.mean, color=f"C{color}", linestyle="--", label=name)
        if summary.spread is not None:
            low, high = summary.mean - summary.spread, summary.mean + summary.spread
            axes.axhspan(low, high, color=f"C{color}", alpha=0.15)
    if any(not s.finished for s in mixed):
        axes.plot([], [], "o", color="grey", markerfacecolor="none", label="stopped early")
    axes.axhline(summaries[0].chance, color="grey", linestyle=":", label="chance")
    if mixed:
        axes.set_xscale("log", base=2)
        axes.xaxis.set_major_locator(FixedLocator(sorted({s.point.k for s in mixed})))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda k, _: f"{k:g}"))
        axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xlabel("K, mixture tokens")
    axes.set_ylabel(metric)
    axes.legend()
    content = BytesIO()
    figure.savefig(content, format="png")
    pyplot.close(figure)
    return content.getvalue()
