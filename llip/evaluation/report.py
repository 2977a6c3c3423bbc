"""Reports of an evaluation: a table for the terminal, Markdown, and one HTML page that needs no other file."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from markupsafe import Markup

from llip.evaluation import calibration, context, examples, figures
from llip.evaluation.calibration import Calibration
from llip.evaluation.evaluate import Outcome, named
from llip.evaluation.metrics import Metric
from llip.evaluation.retrieval import Retrieval
from llip.headline import headline
from llip.page import render, svg
from llip.page import table as page_table

NAME = "metrics.json"
"""File of the metrics of a run, in its folder."""

INTERVALS = (
    "The intervals resample what stands under *over*, by the bootstrap. They hold the model, its seed, the gallery and "
    "the classes as they are: another seed may lie outside."
)

BY_TYPE = {
    "text_to_image_map": "text→image mAP",
    "one_of_20": "one true caption of 20",
    "choice_accuracy": "true caption among hard negatives",
}


@dataclass(frozen=True, kw_only=True)
class Report:
    """An evaluation for people."""

    title: str
    facts: Mapping[str, str]
    """Facts about what was evaluated, in the order of reading."""
    outcomes: Sequence[Outcome]
    story: Mapping[str, Any] = field(default_factory=dict)
    """Facts about the run: its recipe, differences from the recipe, and the command that repeats it."""
    curve: Sequence[Mapping[str, Any]] = ()
    """Logged lines of training, each with its `step`."""

    def markdown(self) -> str:
        """Facts, and the metrics of every set beside chance."""
        facts = "\n".join(f"- {name}: {value}" for name, value in self.facts.items())
        rows = [
            f"| {name} | {m.value:.3f} | {m.chance:.3f} | {m.interval} | {m.over} |"
            for name, m in named(self.outcomes).items()
        ]
        head = "| metric | value | chance | 95 % interval | over |\n| --- | ---: | ---: | ---: | --- |"
        lines = [f"# {self.title}\n\n{facts}\n\n{head}", *rows, f"\n{INTERVALS}\n"]
        if calibrations := self._calibrations():
            lines += [f"| match probabilities of | {' | '.join(calibration.HEAD)} |", "| --- |" + " ---: |" * 6]
            lines += [f"| {name} | {' | '.join(found.cells())} |" for name, found in calibrations.items()] + [""]
        return "\n".join(lines)

    def html(self) -> str:
        """The page: headline, curves, settings, metrics, figures, and examples drawn by seed."""
        metrics = named(self.outcomes)
        first = {name.replace("/", " "): metrics[name] for name in headline(metrics)}
        headlines = [(name, f"{metric.value:.3f}", f"chance {metric.chance:.3f}") for name, metric in first.items()]
        return render(
            "report.html",
            title=self.title,
            facts=self.facts,
            headlines=headlines,
            curves=svg(figures.curves(self._curves())) if self._curves() else "",
            recipe=self.story.get("recipe", ""),
            differing=self.story.get("differing", ()),
            command=self.story.get("command", ""),
            sets=[{"name": o.data.name, "shape": _shape(o), "metrics": o.metrics} for o in self.outcomes],
            intervals=INTERVALS.replace("*", "“", 1).replace("*", "”", 1),
            by_type=self._by_type(),
            mixing=self._mixing(),
            reliability=self._reliability(),
            examples={o.data.name: Markup(examples.of(o)) for o in self.outcomes},
        )

    def _calibrations(self) -> dict[str, Calibration]:
        return {outcome.data.name: found for outcome in self.outcomes if (found := outcome.calibration)}

    def _reliability(self) -> Sequence[str]:
        """Table and figure; nothing where no set has probabilities."""
        if not (found := self._calibrations()):
            return []
        head = ["match probabilities of", *calibration.HEAD]
        shown = svg(figures.reliability({name: of.bins for name, of in found.items()}))
        return [page_table(head, [[name, *of.cells()] for name, of in found.items()]), shown]

    def _curves(self) -> dict[str, dict[str, list[tuple[int, float]]]]:
        """Loss and learning rate by step, where more than a point of them was logged."""
        lines = [line for line in self.curve if "loss" in line]
        if len(lines) < 2:
            return {}
        wanted = {"loss": "loss", "learning rate": "learning_rate"}
        return {title: {"": [(line["step"], line[name]) for line in lines]} for title, name in wanted.items()}

    def _by_type(self) -> Sequence[str]:
        parts = []
        for prefix, label in BY_TYPE.items():
            values = {o.data.name: _with_prefix(o.metrics, prefix) for o in self.outcomes}
            if values := {name: of_set for name, of_set in values.items() if of_set}:
                parts.append(svg(figures.bars_by_type(values, label)))
        return parts

    def _mixing(self) -> dict[str, list[str]]:
        """Figures by the name of a set of contexts."""
        parts: dict[str, list[str]] = {}
        for outcome in self.outcomes:
            if outcome.data.task == "context" and not isinstance(outcome.details, Retrieval):
                arrays = outcome.details
                margin = np.concatenate(
                    [arrays["a_given_a"] - arrays["a_given_b"], arrays["b_given_b"] - arrays["b_given_a"]]
                )
                weights = arrays["weights"]
                mixing = figures.mixing(weights.mean(axis=(0, 1)), context.entropy(weights), context.shift(weights))
                parts[outcome.data.name] = [svg(figures.margins(margin)), svg(mixing)]
        return parts


def _shape(outcome: Outcome) -> str:
    shape = f"{outcome.data.task}, {outcome.data.table.num_rows:,} images"
    if outcome.data.task == "classification" and (without := outcome.data.classes_without_images):
        shape += f"; {len(without)} of {len(outcome.data.classes)} classes have none"
    return shape


def _with_prefix(metrics: Mapping[str, Metric], prefix: str) -> dict[str, Metric]:
    return {name.split("/", 1)[1]: metric for name, metric in metrics.items() if name.startswith(prefix + "/")}


def metrics_of(content: Mapping[str, Any]) -> dict[str, Metric]:
    """The metrics in what a metrics.json holds, with numbers in names in their order: r1, r5, r10."""
    values = content["metrics"]
    order = sorted(values, key=lambda name: [int(p) if p.isdecimal() else p for p in re.split(r"(\d+)", name)])
    return {name: Metric(**values[name]) for name in order}


def table(metrics: Mapping[str, Metric]) -> str:
    """Metrics beside their chance levels and intervals as text, by set."""
    width = max(map(len, metrics), default=0)
    lines = [f"{'metric':<{width}}   value  chance  95 % interval, over"]
    previous = ""
    for name, metric in metrics.items():
        data = name.split("/")[0]
        lines += [""] if data != previous else []
        line = f"{name:<{width}}  {metric.value:6.3f}  {metric.chance:6.3f}  {metric.interval}  {metric.over}"
        lines.append(line.rstrip(" –"))
        previous = data
    return "\n".join(lines)
