"""The study as a figure: the metric against K and heads, and every method with its interval."""

from collections.abc import Sequence
from dataclasses import replace
from io import BytesIO
from typing import TYPE_CHECKING

from tune.found import FLOPS, STEPS, TIME, StudyFound
from tune.intervals import Judged
from tune.variants import CLIP, DEFAULT, LOSSES, PAPER, SIGLIP, Variant

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.gridspec import GridSpec

AROUND = {DEFAULT: "the default recipe, softmax", PAPER: "the paper's Llip, sigmoid"}
"""Variants around which K and heads are varied."""
MARKS = {STEPS: "o", FLOPS: "D", TIME: "s"}


def draw(found: StudyFound, judged: Judged) -> bytes:
    """PNG: the metric against K and against the heads, a line for each of two forms of Llip, beside the baselines; and
    a row for each head and loss, with the longer runs of the baselines beside those of equal steps."""
    from matplotlib.figure import Figure

    from llip.page import plain

    counts = any(variant.varies_counts for _, variant in found.results)
    rows = [variant for axis, variant in found.results if axis == STEPS and not variant.varies_counts]
    figure = Figure(figsize=(13 if counts else 9, max(3.6, 1.6 + 0.3 * len(rows))), dpi=130, layout="constrained")
    grid = figure.add_gridspec(2, 2, width_ratios=(1, 1.6)) if counts else figure.add_gridspec(1, 1)
    forest = figure.add_subplot(grid[:, -1])
    plain(forest)
    _forest(forest, found, judged, rows)
    if counts:
        _counts(figure, grid, found, judged)
    content = BytesIO()
    figure.savefig(content, format="png")
    return content.getvalue()


def _counts(figure: "Figure", grid: "GridSpec", found: StudyFound, judged: Judged) -> None:
    """Both curves, at the left."""
    from llip.page import plain

    fields = (("tokens", found.tokens, "K, mixture tokens"), ("heads", found.heads, "heads"))
    for row, (field, own, label) in enumerate(fields):
        axes = figure.add_subplot(grid[row, 0])
        plain(axes)
        _curves(axes, found, judged, field, own)
        axes.set_xlabel(label, fontsize=8)
        axes.set_ylabel(found.metric.partition("/")[2], fontsize=8)
        if row == 0:
            axes.legend(fontsize=7, frameon=False)


def _curves(axes: "Axes", found: StudyFound, judged: Judged, field: str, own: int) -> None:
    """The metric against one count; `own` is the recipe's."""
    from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

    from llip.page import COLOURS, GREY

    seen = set[int]()
    for colour, (around, label) in zip(COLOURS, AROUND.items(), strict=False):
        line = {
            getattr(variant, field) or own: judged.level(found.metric, group)
            for (axis, variant), group in found.results.items()
            if axis == STEPS and _without(variant, field) == around
        }
        if not line:
            continue
        seen |= line.keys()
        places, levels = sorted(line), [line[place] for place in sorted(line)]
        below, above = [e.value - e.low for e in levels], [e.high - e.value for e in levels]
        axes.errorbar(
            places, [e.value for e in levels], yerr=[below, above], fmt="o-", markersize=4, capsize=3, color=colour,
            label=label,
        )  # fmt: skip
    for variant, style in ((CLIP, "--"), (SIGLIP, ":")):
        if group := found.results.get((STEPS, variant)):
            value = judged.level(found.metric, group).value
            axes.axhline(value, color=GREY, linestyle=style, label=variant.label)
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_locator(FixedLocator(sorted(seen)))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda count, _: f"{count:g}"))
    axes.xaxis.set_minor_locator(NullLocator())


def _without(variant: Variant, field: str) -> Variant:
    """The variant with the recipe's own count."""
    return replace(variant, tokens=None) if field == "tokens" else replace(variant, heads=None)


def _forest(axes: "Axes", found: StudyFound, judged: Judged, rows: Sequence[Variant]) -> None:
    """A row a method: its mean and interval, coloured by the loss, marked by what is equal."""
    from llip.page import COLOURS, GREY, INK

    levels = {key: judged.level(found.metric, group) for key, group in found.results.items() if key[1] in rows}
    ordered = sorted(rows, key=lambda variant: -levels[STEPS, variant].value)
    for (axis, variant), level in levels.items():
        place = ordered.index(variant) + {STEPS: 0.0, FLOPS: 0.18, TIME: 0.36}[axis]
        colour = COLOURS[LOSSES.index(variant.loss)]
        axes.hlines(place, level.low, level.high, color=colour, linewidth=2)
        axes.plot([level.value], [place], color=colour, marker=MARKS[axis], markersize=5, linestyle="")
    chance = next(iter(found.results.values()))[0].chance[found.metric]
    axes.axvline(chance, color=GREY, linestyle=":", linewidth=1.2)
    axes.set_yticks(range(len(ordered)), [variant.label for variant in ordered], fontsize=8)
    axes.set_ylim(len(ordered) - 0.4, -0.6)
    axes.set_xlabel(f"{found.metric}, 95 % intervals; dotted: chance", fontsize=8)
    axes.grid(axis="x", color=GREY, alpha=0.4, linewidth=0.6)
    for loss, colour in zip(LOSSES, COLOURS, strict=False):
        axes.plot([], [], color=colour, linewidth=2, label=loss)
    for axis in dict.fromkeys(axis for axis, _ in levels):
        axes.plot([], [], color=INK, marker=MARKS[axis], markersize=5, linestyle="", label=f"equal {axis}")
    axes.legend(fontsize=7, frameon=False, ncols=5, loc="lower right", bbox_to_anchor=(1.0, 1.0))
