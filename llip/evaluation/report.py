"""What people read of an evaluation: a table for the terminal, Markdown, and one HTML page that needs no other file."""

import html
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from llip.evaluation import context, examples, figures
from llip.evaluation.evaluate import Outcome, named
from llip.evaluation.metrics import Metric
from llip.evaluation.retrieval import Retrieval
from llip.page import heading, page, svg

NAME = "metrics.json"
"""File of the metrics of a run, in its folder."""

BY_KIND = {"text_to_image_map": "text→image mAP", "one_of_20": "one true caption of 20"}

EXAMPLES = """Drawn by seed, not chosen. Green frames are right, red ones wrong.
Under a wrong class, the true one in grey."""

STYLE = """
.metrics { width: 100% } .metrics tr.set td { padding-top: .9rem; font-weight: 600 }
.bar b { position: absolute; top: -2px; bottom: -2px; width: 2px; background: #22262c }
img.right { border-color: #3d9a6c } img.wrong { border-color: #c14953 }
td.right { background: #dff1e7 } td.wrong { background: #f7e0e2 }
.ranking { display: flex; gap: .45rem; align-items: center; margin: .3rem 0 }
.query { width: 19rem; padding-right: 1rem }
.contexts { display: grid; grid-template-columns: 1fr 1fr; gap: .8rem }
.context { display: flex; gap: .7rem; font-size: .9rem }
"""


@dataclass(frozen=True, kw_only=True)
class Report:
    """An evaluation for people."""

    title: str
    facts: Mapping[str, str]
    """What was evaluated, in the order of reading."""
    outcomes: Sequence[Outcome]

    def markdown(self) -> str:
        """Facts, and the metrics of every set beside chance."""
        facts = "\n".join(f"- {name}: {value}" for name, value in self.facts.items())
        rows = [f"| {name} | {m.value:.3f} | {m.chance:.3f} |" for name, m in named(self.outcomes).items()]
        return "\n".join(
            [f"# {self.title}\n\n{facts}\n\n| metric | value | chance |\n| --- | ---: | ---: |", *rows, ""]
        )

    def html(self) -> str:
        """The page: metrics, figures, and examples drawn by seed."""
        sections = [
            heading(self.title, self.facts),
            f"<h2>Metrics</h2><p>The dark tick is what random ranking gets.</p>{self._metrics()}",
            *self._by_kind(),
            *self._mixing(),
            f"<h2>Examples</h2><p>{EXAMPLES}</p>",
            *(f"<h3>{html.escape(outcome.data.name)}</h3>{examples.of(outcome)}" for outcome in self.outcomes),
        ]
        return page(self.title, sections, STYLE)

    def _metrics(self) -> str:
        rows = []
        for outcome in self.outcomes:
            shape = f"{outcome.data.task}, {outcome.data.table.num_rows:,} images"
            if outcome.data.task == "classification" and (without := outcome.data.classes_without_images):
                shape += f"; {len(without)} of {len(outcome.data.classes)} classes have none"
            rows.append(
                f'<tr class="set"><td colspan="4">{html.escape(outcome.data.name)}<small>{shape}</small></td></tr>'
            )
            rows += [_metric_row(name, metric) for name, metric in outcome.metrics.items()]
        head = '<tr><th>metric</th><th class="n">value</th><th class="n">chance</th><th></th></tr>'
        return f'<table class="metrics">{head}{"".join(rows)}</table>'

    def _by_kind(self) -> Sequence[str]:
        parts = []
        for prefix, label in BY_KIND.items():
            values = {
                o.data.name: _with_prefix(o.metrics, prefix) for o in self.outcomes if isinstance(o.details, Retrieval)
            }
            if values:
                parts.append(svg(figures.bars_by_kind(values, label)))
        return ["<h2>Retrieval by kind of caption</h2>", *parts] if parts else []

    def _mixing(self) -> Sequence[str]:
        parts = []
        for outcome in self.outcomes:
            if outcome.data.task == "context" and not isinstance(outcome.details, Retrieval):
                arrays = outcome.details
                margin = np.concatenate(
                    [arrays["a_given_a"] - arrays["a_given_b"], arrays["b_given_b"] - arrays["b_given_a"]]
                )
                weights = arrays["weights"]
                entropy, shift = context.entropy(weights), context.shift(weights)
                parts.append(f"<h3>{html.escape(outcome.data.name)}</h3>{svg(figures.margins(margin))}")
                parts.append(svg(figures.mixing(weights.mean(axis=(0, 1)), entropy, shift)))
        return ["<h2>What the caption changes</h2>", *parts] if parts else []


def _with_prefix(metrics: Mapping[str, Metric], prefix: str) -> dict[str, Metric]:
    return {name.split("/", 1)[1]: metric for name, metric in metrics.items() if name.startswith(prefix + "/")}


def _metric_row(name: str, metric: Metric) -> str:
    bar = f'<div class="bar"><i style="width:{metric.value:.2%}"></i><b style="left:{metric.chance:.2%}"></b></div>'
    numbers = f'<td class="n">{metric.value:.3f}</td><td class="n">{metric.chance:.3f}</td>'
    return f"<tr><td>{html.escape(name)}</td>{numbers}<td>{bar}</td></tr>"


def metrics_of(content: Mapping[str, Any]) -> dict[str, Metric]:
    """The metrics in what a metrics.json holds, with numbers in names in their order: r1, r5, r10."""
    values = content["metrics"]
    order = sorted(values, key=lambda name: [int(p) if p.isdecimal() else p for p in re.split(r"(\d+)", name)])
    return {name: Metric(**values[name]) for name in order}


def table(metrics: Mapping[str, Metric]) -> str:
    """Metrics beside their chance levels as text, by set."""
    width = max(map(len, metrics), default=0)
    lines = [f"{'metric':<{width}}   value  chance"]
    previous = ""
    for name, metric in metrics.items():
        data = name.split("/")[0]
        lines += [""] if data != previous else []
        lines.append(f"{name:<{width}}  {metric.value:6.3f}  {metric.chance:6.3f}")
        previous = data
    return "\n".join(lines)
