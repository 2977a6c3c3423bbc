"""Report of a study: a table of methods and types of captions, what the differences are worth, and a figure."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import combinations
from typing import TYPE_CHECKING, Any

from tune import study_figure
from tune.axes import spelling
from tune.found import FLOPS, STEPS, TIME, Settings, StudyFound
from tune.intervals import Judged, columns
from tune.variants import BASELINES, CLIP, DEFAULT, PAPER, SIGLIP, Variant

if TYPE_CHECKING:
    from tune.results import TrialResult

TABLE, FIGURE, PAGE, RESULTS = "study.md", "study.png", "study.html", "results.json"
MAIN = (DEFAULT, PAPER, SIGLIP, CLIP)
"""Compared with each other whatever is equal, in this order."""
WITHOUT_PATCHES = replace(DEFAULT, form="text_query_shared")
PARTS = (
    ("patches", DEFAULT, WITHOUT_PATCHES),
    ("loss", DEFAULT, replace(DEFAULT, loss="sigmoid")),
    ("loss", replace(PAPER, loss="softmax"), PAPER),
    ("loss", CLIP, SIGLIP),
    ("shared projections", DEFAULT, replace(DEFAULT, form="text_query_patches")),
    ("shared projections", replace(PAPER, form="text_query_shared"), PAPER),
    ("the caption's query", PAPER, replace(PAPER, form="learned_query")),
    ("the caption's query", PAPER, replace(PAPER, form="mean")),
    ("the tokens' side", PAPER, replace(PAPER, form="image_query")),
    ("tokens that are dropped", replace(PAPER, form="register"), SIGLIP),
)
"""Worth of each part of a method, at equal steps: its name, a variant with it, and one without it or with another."""


def files(found: StudyFound) -> dict[str, bytes]:
    """The report by file name. Raises ValueError where no trial has the metric."""
    everything = [r for group in found.results.values() for r in group]
    if not any(found.metric in r.metrics for r in everything):
        raise ValueError(f"no trial of the study has the metric {found.metric!r}; see the errors above")
    judged = Judged(everything, found.folder)
    figure = study_figure.draw(found, judged)
    head, *rows = table(found, judged)
    told = sentences(found, judged)
    return {
        TABLE: _markdown(found, head, rows, told, judged).encode(),
        FIGURE: figure,
        PAGE: _page(found, [head, *rows], told, judged, figure).encode(),
        RESULTS: json.dumps(_kept(found), indent=2).encode(),
    }


def table(found: StudyFound, judged: Judged) -> list[list[str]]:
    """The head, the chance levels, then a row a method and length; intervals in brackets."""
    everything = [r for group in found.results.values() for r in group]
    shown = columns(found.metric, everything)
    data, chance = found.metric.split("/")[0] + "/", everything[0].chance
    return [
        ["variant", "equal", "seeds", "steps", "GFLOP a step", f"{found.unit} a step"]
        + [name.removeprefix(data) for name in shown],
        ["chance", "", "", "", "", "", *(f"{chance[name]:.3f}" for name in shown)],
        *(
            [
                variant.label,
                axis,
                str(len(group)),
                f"{found.steps[axis, variant]:,}",
                f"{found.flops[variant] / 1e9:.2f}",
                f"{found.seconds[variant]:.3f}" if variant in found.seconds else "–",
                *(judged.cell(name, group) for name in shown),
            ]
            for (axis, variant), group in found.results.items()
        ),
    ]


def sentences(found: StudyFound, judged: Judged) -> list[str]:
    """The main comparisons, one sentence each: the difference of the metric, and its interval."""
    return [
        _sentence(judged, found.metric, f"Equal {axis}", (a, of(found, axis, a)), (b, of(found, axis, b)))
        for axis in (STEPS, FLOPS, TIME)
        for a, b in combinations(MAIN, 2)
        if of(found, axis, a) and of(found, axis, b)
    ] + [
        _sentence(judged, found.metric, f"Equal steps, {part}", (a, of(found, STEPS, a)), (b, of(found, STEPS, b)))
        for part, a, b in PARTS
        if of(found, STEPS, a) and of(found, STEPS, b)
    ]


Side = tuple[Variant, "Sequence[TrialResult]"]


def of(found: StudyFound, axis: str, variant: Variant) -> "Sequence[TrialResult]":
    """A method's trials where something is equal: what it is given is the budget of the default at equal steps."""
    return found.results.get((STEPS if variant == DEFAULT else axis, variant), ())


def _sentence(judged: Judged, metric: str, where: str, first: Side, second: Side) -> str:
    difference = judged.difference(metric, second[1], first[1])
    verdict = "" if difference.decided else ", not told apart"
    return (
        f"{where}: {first[0].called} against {second[0].called} {difference.value:+.3f} "
        f"({difference.low:+.3f} to {difference.high:+.3f}){verdict}."
    )


def notes(found: StudyFound, judged: Judged) -> list[str]:
    """Meaning of the table's numbers, and the settings that each method has chosen."""
    budget = f"{found.steps.get((STEPS, DEFAULT), 0):,} steps of {DEFAULT.name}"
    return [
        f"Brackets: 95 % intervals over seeds × {judged.over(found.metric)}, resampled together, for {found.metric}; "
        "of others over the captions and images that they are about. Every sentence stands for itself alone.",
        f"Equal FLOPs and equal time: the FLOPs of both towers and of all pairs, and the {found.unit} of the training "
        f"steps alone, of {budget}, each model's rate measured alone before the trials.",
        *(f"{variant.name}: {_written(choice)}" for variant, choice in found.choices.items()),
    ]


def _written(choice: Settings) -> str:
    return ", ".join(f"{spelling(path)} {value:.4g}" for path, value in choice.items())


def _markdown(found: StudyFound, head: list[str], rows: list[list[str]], told: list[str], judged: Judged) -> str:
    rule = ["---", "---", *("---:" for _ in head[2:])]
    lines = [f"| {' | '.join(row)} |" for row in (head, rule, *rows)]
    listed = [f"- {line}" for line in (*told, *notes(found, judged))]
    return "\n".join([*lines, "", *listed, ""])


def _page(found: StudyFound, rows: list[list[str]], told: list[str], judged: Judged, figure: bytes) -> str:
    from llip.page import plot, render
    from llip.runs.run_folder import git_revision

    return render(
        "search.html",
        title="Study",
        headlines=list(_headlines(found, judged)),
        facts={"metric": found.metric, "commit": git_revision()[:20]},
        verdict=told[0] if told else "",
        command="",
        plots=[plot(FIGURE, figure)],
        head=rows[0],
        rows=rows[1:],
        numbers_from=2,
        notes=[*told[1:], *notes(found, judged)],
    )


def _headlines(found: StudyFound, judged: Judged) -> Iterator[tuple[str, str, str]]:
    shown = [v for v in (DEFAULT, *BASELINES[::-1]) if of(found, STEPS, v)] or [v for _, v in list(found.results)[:3]]
    for variant in shown:
        group = found.results[STEPS, variant]
        level = judged.level(found.metric, group)
        note = f"{level.low:.3f}–{level.high:.3f}, chance {group[0].chance[found.metric]:.3f}"
        yield variant.called, f"{level.value:.3f}", note


def _kept(found: StudyFound) -> dict[str, Any]:
    """Results of a study, as JSON values."""

    def by_name(values: Mapping[Variant, Any]) -> dict[str, Any]:
        return {variant.name: value for variant, value in values.items()}

    return {
        "choices": by_name(found.choices),
        "flops_per_step": by_name(found.flops),
        "seconds_per_step": by_name(found.seconds),
        "unit": found.unit,
        **{
            f"equal_{axis}": [r.written() for (of, _), group in found.results.items() for r in group if of == axis]
            for axis in (STEPS, FLOPS, TIME)
        },
    }
