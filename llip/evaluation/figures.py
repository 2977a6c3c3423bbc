"""Figures of a report."""

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from llip.evaluation.metrics import Metric
from llip.page import COLOURS, GREY, INK, panel, plain


def bars_by_type(values: Mapping[str, Mapping[str, Metric]], label: str) -> Figure:
    """Grouped bars with chance as a tick and the interval as a grey line: `values[series][type]`."""
    types = sorted({name for series in values.values() for name in series})
    figure, axes = panel(width=1.6 + 0.55 * len(types) * max(1, len(values)) ** 0.7 + 1.5, height=2.9)
    width = 0.8 / len(values)
    for index, (series, metrics) in enumerate(values.items()):
        place = np.array([types.index(name) for name in metrics]) - 0.4 + width * (index + 0.5)
        axes.bar(place, [m.value for m in metrics.values()], width * 0.92, label=series, color=COLOURS[index % 6])
        chance = [m.chance for m in metrics.values()]
        axes.hlines(chance, place - width / 2, place + width / 2, color=INK, linewidth=1.4)
        for at, metric in zip(place, metrics.values(), strict=True):
            if metric.low is not None and metric.high is not None:
                axes.vlines(at, metric.low, metric.high, color=GREY, linewidth=1.4)
    axes.set_xticks(range(len(types)), types)
    axes.set_ylim(0, 1)
    axes.set_ylabel(label)
    axes.plot([], [], color=INK, linewidth=1.4, label="chance")
    axes.legend(frameon=False, fontsize=8, loc="upper left", bbox_to_anchor=(1.0, 1.0))
    return figure


def mixing(weight_MK: NDArray[np.floating], entropy_M: NDArray[np.floating], shift_M: NDArray[np.floating]) -> Figure:
    """Mean mixing weight by head and token, beside each head's entropy and the weight that the caption moves."""
    heads, tokens = weight_MK.shape
    figure = Figure(figsize=(8.6, 1.5 + 0.28 * heads), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(2, 1))
    shown = left.imshow(weight_MK, cmap="Blues", vmin=0, aspect="auto")
    left.set_xlabel("mixture token")
    left.set_ylabel("head")
    left.set_xticks(range(0, tokens, max(1, tokens // 16)))
    left.set_yticks(range(heads))
    figure.colorbar(shown, ax=left, label="mean weight", pad=0.02)
    place = np.arange(heads)
    right.barh(place - 0.2, entropy_M, 0.36, color=COLOURS[0], label="entropy (1: uniform)")
    right.barh(place + 0.2, shift_M, 0.36, color=COLOURS[1], label="moved by the caption")
    right.set_yticks(place)
    right.set_ylim(heads - 0.5, -0.5)
    right.set_xlim(0, 1)
    plain(right)
    right.legend(frameon=False, fontsize=8, loc="upper center", bbox_to_anchor=(0.5, -0.18), ncols=2)
    return figure


def mixing_maps(weight_CMK: NDArray[np.floating], captions: Sequence[str]) -> Figure:
    """Mixing weights of one image by head and token, a map for each caption, on one scale."""
    count, heads, tokens = weight_CMK.shape
    figure = Figure(figsize=(8.6, count * (0.8 + 0.2 * heads)), layout="constrained")
    maps = list(figure.subplots(count, 1, squeeze=False).flat)
    for axes, weight_MK, caption in zip(maps, weight_CMK, captions, strict=True):
        shown = axes.imshow(weight_MK, cmap="Blues", vmin=0, vmax=weight_CMK.max(), aspect="auto")
        axes.set_title(caption, fontsize=9, loc="left")
        axes.set_ylabel("head", fontsize=8)
        axes.set_xticks(range(0, tokens, max(1, tokens // 16)))
        axes.set_yticks(range(heads))
        axes.tick_params(labelsize=7)
    maps[-1].set_xlabel("mixture token", fontsize=8)
    figure.colorbar(shown, ax=maps, label="weight", pad=0.02)
    return figure


def margins(margin_N: NDArray[np.floating]) -> Figure:
    """Histogram of margins: similarity to a caption of the feature given it, less that of the feature given another."""
    figure, axes = panel(width=5.2, height=2.4)
    limit = float(np.abs(margin_N).max()) or 1.0
    edges = np.linspace(-limit, limit, 41).tolist()
    axes.hist(margin_N[margin_N <= 0], edges, color=COLOURS[4], label="wrong")
    axes.hist(margin_N[margin_N > 0], edges, color=COLOURS[2], label="right")
    axes.axvline(0, color=INK, linewidth=1)
    axes.set_xlabel("ẑ(i|own)·t̂ − ẑ(i|other)·t̂")
    axes.set_ylabel("decisions")
    axes.legend(frameon=False, fontsize=8)
    return figure


def grouped_bars(values: Mapping[str, Sequence[float]], names: Sequence[str], chance: Sequence[float]) -> Figure:
    """Horizontal bars of several runs, metric by metric, with a tick at each chance level: `values[run][metric]`."""
    rows, runs = len(names), len(values)
    figure, axes = panel(width=8.6, height=1.0 + rows * (0.12 + 0.16 * runs))
    height = 0.84 / runs
    for index, (run, numbers) in enumerate(values.items()):
        place = np.arange(rows) - 0.42 + height * (index + 0.5)
        axes.barh(place, numbers, height * 0.9, color=COLOURS[index % len(COLOURS)], label=run)
    axes.vlines(chance, np.arange(rows) - 0.45, np.arange(rows) + 0.45, color=INK, linewidth=1.4, label="chance")
    axes.set_yticks(range(rows), names, fontsize=8)
    axes.set_ylim(rows - 0.5, -0.5)
    axes.set_xlim(0, 1)
    axes.legend(frameon=False, fontsize=8, loc="lower left", bbox_to_anchor=(0, 1.0), ncols=min(4, runs + 1))
    return figure


def reliability(bins: Mapping[str, Sequence[tuple[float, float, int]]]) -> Figure:
    """Share of true pairs against match probability, on logarithmic axes: `bins[set]` is `Calibration.bins`."""
    figure, axes = panel(width=5.2, height=4.2)
    least = min((min(p, s) for of in bins.values() for p, s, _ in of if p > 0 and s > 0), default=0.1)
    axes.plot([least, 1], [least, 1], color=INK, linewidth=1, label="right")
    for index, (name, of_set) in enumerate(bins.items()):
        shown = [(p, s) for p, s, _ in of_set if p > 0 and s > 0]
        colour = COLOURS[index % len(COLOURS)]
        axes.plot(*zip(*shown, strict=True), color=colour, marker="o", markersize=3, linewidth=1.2, label=name)
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlabel("match probability")
    axes.set_ylabel("share of true pairs")
    axes.legend(frameon=False, fontsize=8)
    return figure


def differences(values: Mapping[str, tuple[float, float, float]], label: str) -> Figure:
    """Differences with their intervals, one a line, beside the line of none: `values[metric]` is (value, low, high)."""
    figure, axes = panel(width=8.6, height=0.9 + 0.28 * len(values))
    axes.axvline(0, color=INK, linewidth=1)
    for place, (value, low, high) in enumerate(values.values()):
        colour = GREY if low <= 0 <= high else COLOURS[0]
        axes.hlines(place, low, high, color=colour, linewidth=2.4)
        axes.plot([value], [place], color=colour, marker="o", markersize=5)
    axes.set_yticks(range(len(values)), list(values), fontsize=8)
    axes.set_ylim(len(values) - 0.5, -0.5)
    axes.set_xlabel(label, fontsize=8)
    return figure


def curves(panels: Mapping[str, Mapping[str, Sequence[tuple[int, float]]]]) -> Figure:
    """Small multiples of step curves, two a row: `panels[metric][run]` is a list of (step, value)."""
    rows = -(-len(panels) // 2)
    figure = Figure(figsize=(8.6, 2.5 * rows), layout="constrained")
    grid = list(figure.subplots(rows, 2, squeeze=False).flat)
    for axes, (metric, of_runs) in zip(grid, panels.items(), strict=False):
        for index, (run, points) in enumerate(of_runs.items()):
            axes.plot(*zip(*points, strict=True), color=COLOURS[index % len(COLOURS)], linewidth=1.2, label=run)
        axes.set_title(metric, fontsize=9, loc="left")
        axes.set_xlabel("step", fontsize=8)
        plain(axes)
    for axes in grid[len(panels) :]:
        axes.set_visible(False)
    handles, labels = figure.axes[0].get_legend_handles_labels()
    if any(labels):
        figure.legend(handles, labels, frameon=False, fontsize=8, loc="outside upper left", ncols=4)
    return figure


def by_temperature(values: Mapping[str, Sequence[float]], temperatures: Sequence[float], trained: float) -> Figure:
    """Metrics against the temperature of the mixing weights, on a logarithmic axis; a grey line at the trained one."""
    figure, axes = panel(width=6.4, height=3.2)
    axes.axvline(trained, color=GREY, linewidth=1.4, label="trained")
    for index, (metric, of_metric) in enumerate(values.items()):
        colour = COLOURS[index % len(COLOURS)]
        axes.plot(temperatures, of_metric, color=colour, marker="o", markersize=3, linewidth=1.2, label=metric)
    axes.set_xscale("log")
    axes.set_xlabel("temperature τ")
    axes.legend(frameon=False, fontsize=8, loc="upper left", bbox_to_anchor=(1.0, 1.0))
    return figure


def spectra(value_W: Mapping[str, NDArray[np.floating]]) -> Figure:
    """Log singular values by rank, one line a model; those of rounding noise are cut off."""
    figure, axes = panel(width=6.4, height=3.2)
    for index, (name, values) in enumerate(value_W.items()):
        shown = values[values > 1e-12 * values[0]]
        axes.plot(np.log(shown), color=COLOURS[index % len(COLOURS)], label=name)
    axes.set_xlabel("rank")
    axes.set_ylabel("log singular value")
    axes.legend(frameon=False, fontsize=8)
    return figure
