"""Report of scaling: a table, laws of the loss and of the metric, what they predict, and a figure."""

import json
import statistics
from dataclasses import asdict, dataclass
from io import BytesIO
from typing import TYPE_CHECKING

from tune.intervals import Judged
from tune.laws import Law, Prediction, TrainedSize, fit, fittable, predictions

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from tune.results import TrialResult

TABLE, FIGURE, PAGE, RESULTS = "scaling.md", "scaling.png", "scaling.html", "scaling_results.json"
LEAST = 1e-4
"""Least distance of a metric to 1, since its logarithm is taken."""


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One size and length over its seeds."""

    size: str
    steps: int
    flops: float
    """FLOPs of a step."""
    results: "list[TrialResult]"
    """Finished ones."""
    losses: list[float]
    """Loss of each of these, at the end of training."""


@dataclass(frozen=True, kw_only=True)
class ScalingFound:
    """Findings so far."""

    metric: str
    cells: list[Cell]
    folders: dict[str, str]
    """Run folder of every trial, by its name."""


@dataclass(frozen=True, kw_only=True)
class Fitted:
    """A quantity, its law over all runs, and what laws without some of them predict."""

    name: str
    runs: list[TrainedSize]
    """One a cell, the mean over its seeds."""
    law: Law | None
    """None where too few runs have finished."""
    predictions: list[Prediction]


def fitted(found: ScalingFound) -> list[Fitted]:
    """The loss at the end of training, and what the metric lacks of 1."""

    def lacks(cell: Cell) -> float:
        return max(LEAST, 1 - statistics.mean(result.metrics[found.metric] for result in cell.results))

    values = {
        "training loss": [statistics.mean(cell.losses) for cell in found.cells],
        f"1 − {found.metric.partition('/')[2]}": [lacks(cell) for cell in found.cells],
    }
    laws = []
    for name, of_cells in values.items():
        runs = [
            TrainedSize(size=cell.flops / 1e9, steps=cell.steps, value=value)
            for cell, value in zip(found.cells, of_cells, strict=True)
        ]
        law = fit(runs) if fittable(runs) else None
        laws.append(Fitted(name=name, runs=runs, law=law, predictions=predictions(runs)))
    return laws


def files(found: ScalingFound) -> dict[str, bytes]:
    """The report by file name. Raises ValueError where no trial has finished."""
    if not found.cells:
        raise ValueError("no trial reached its end; see the errors above")
    judged = Judged([r for cell in found.cells for r in cell.results], found.folders)
    laws = fitted(found)
    head, *rows = table(found, laws, judged)
    told = sentences(laws)
    figure = draw(found, laws)
    lines = [f"| {' | '.join(row)} |" for row in (head, ["---", *("---:" for _ in head[1:])], *rows)]
    kept = [
        {"size": cell.size, "steps": cell.steps, "flops_per_step": cell.flops, "losses": cell.losses}
        | {"results": [r.written() for r in cell.results]}
        for cell in found.cells
    ]
    fits = {of.name: asdict(of.law) for of in laws if of.law}
    return {
        TABLE: "\n".join([*lines, "", *(f"- {line}" for line in told), ""]).encode(),
        FIGURE: figure,
        PAGE: _page(found, head, rows, told, laws, figure).encode(),
        RESULTS: json.dumps({"runs": kept, "laws": fits}, indent=2).encode(),
    }


def table(found: ScalingFound, laws: list[Fitted], judged: Judged) -> list[list[str]]:
    """The head, then a row a size and length: what was measured, and what the law of all runs says."""
    rows = [["size", "steps", "seeds", "GFLOP a step", "TFLOP", "training loss", "its law", found.metric, "its law"]]
    for index, cell in enumerate(found.cells):
        loss, lacks = (of.law(of.runs[index].size, cell.steps) if of.law else None for of in laws)
        rows.append(
            [
                cell.size,
                f"{cell.steps:,}",
                str(len(cell.results)),
                f"{cell.flops / 1e9:.2f}",
                f"{cell.flops * cell.steps / 1e12:.2f}",
                f"{statistics.mean(cell.losses):.3f}",
                "–" if loss is None else f"{loss:.3f}",
                judged.cell(found.metric, cell.results),
                "–" if lacks is None else f"{1 - lacks:.3f}",
            ]
        )
    return rows


def sentences(laws: list[Fitted]) -> list[str]:
    """The laws, and the error of every prediction."""
    told = []
    for of in laws:
        if of.law is None:
            told.append(f"{of.name}: no law yet, which needs three sizes and three lengths.")
            continue
        told.append(f"{of.name} = {of.law}, size in GFLOP a step.")
        for p in of.predictions:
            each = "; ".join(
                f"{p.law(r.size, r.steps):.3f} predicted, {r.value:.3f} measured ({error:+.1%})"
                for r, error in zip(p.runs, p.errors, strict=True)
            )
            told.append(f"{of.name}, without {p.left_out}: {each}; mean error {p.error:.1%}.")
    return told


def _page(
    found: ScalingFound, head: list[str], rows: list[list[str]], told: list[str], laws: list[Fitted], figure: bytes
) -> str:
    from llip.page import plot, render
    from llip.runs.run_folder import git_revision

    shown = [(of, of.predictions[0]) for of in laws if of.predictions]
    return render(
        "search.html",
        title="Scaling",
        headlines=[
            (of.name, f"{p.error:.1%}", f"mean error of what was predicted without {p.left_out}") for of, p in shown
        ],
        facts={"metric": found.metric, "commit": git_revision()[:20]},
        verdict=told[0],
        command="",
        plots=[plot(FIGURE, figure)],
        head=head,
        rows=rows,
        numbers_from=1,
        notes=told[1:],
    )


def draw(found: ScalingFound, laws: list[Fitted]) -> bytes:
    """PNG: each quantity against steps, a colour a size: runs as points, hollow where the first prediction did without
    them, and as lines what it predicts."""
    from matplotlib.figure import Figure

    from llip.page import plain

    figure = Figure(figsize=(11, 4.2), dpi=130, layout="constrained")
    for axes, of in zip(figure.subplots(1, len(laws)), laws, strict=True):
        plain(axes)
        _panel(axes, found, of)
    content = BytesIO()
    figure.savefig(content, format="png")
    return content.getvalue()


def _panel(axes: "Axes", found: ScalingFound, of: Fitted) -> None:
    import numpy as np
    from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

    from llip.page import COLOURS

    first = of.predictions[0] if of.predictions else None
    hidden = first.runs if first else ()
    law = first.law if first else of.law
    lengths = sorted({run.steps for run in of.runs})
    sizes = dict.fromkeys(cell.size for cell in found.cells)
    for index, size in enumerate(sizes):
        colour = COLOURS[index % len(COLOURS)]
        runs = [run for cell, run in zip(found.cells, of.runs, strict=True) if cell.size == size]
        for run in runs:
            fill = "none" if run in hidden else colour
            axes.plot([run.steps], [run.value], marker="o", markersize=6, color=colour, markerfacecolor=fill)
        if law:
            steps = np.geomspace(lengths[0], lengths[-1], 60)
            axes.plot(steps, [law(runs[0].size, s) for s in steps], color=colour, linewidth=1.2)
        axes.plot([], [], color=colour, marker="o", label=f"{size}, {runs[0].size:.2g} GFLOP a step")
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.xaxis.set_major_locator(FixedLocator(lengths))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda steps, _: f"{steps:,.0f}"))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.yaxis.set_minor_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.tick_params(which="minor", labelsize=7)
    axes.set_xlabel("steps", fontsize=8)
    axes.set_title(
        of.name + ("; hollow: left out, and predicted by the lines" if hidden else ""), fontsize=9, loc="left"
    )
    axes.legend(fontsize=7, frameon=False)
