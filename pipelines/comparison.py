"""Runs side by side: where their configurations differ, what they reached, and how they got there."""

import json
import re
import statistics
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from llip import storage
from llip.evaluation import figures, report
from llip.evaluation.item_scores import ItemScores
from llip.evaluation.metrics import Metric
from llip.evaluation.paired import Difference, difference
from llip.headline import headline
from llip.page import render, svg
from llip.runs import run_folder
from llip.runs.notebook import published
from llip.runs.tracking import read_metrics
from pipelines.evaluation_cache import SCORES, metrics_of, read_items, scores_of

ROUNDING = 1e-9
CURVES = ("loss", "learning_rate")
OVER_CAPTIONS = "text_to_image_map"
"""Tested beside the headline of each set."""
ONE_BY_ONE = "Each interval stands for its row alone: of twenty rows without a difference, one may well show one."


@dataclass(frozen=True, kw_only=True)
class RunRecord:
    """Settings and metrics of a run, from its folder."""

    name: str
    settings: dict[str, Any]
    """Training configuration, flat: `model.vision.tokens`."""
    metrics: dict[str, Metric]
    sets: dict[str, str]
    """Digests of the evaluation sets, by name; empty where the evaluation noted none."""
    curve: list[dict[str, Any]]
    """Logged lines, each with its `step`."""
    scores: Callable[[str], Mapping[str, ItemScores]]
    """Scores of single items of a set, by metric."""

    @classmethod
    def read(cls, folder: str) -> "RunRecord":
        """Takes the last evaluation of training where there is no other, as in trials of a sweep.

        Raises ValueError for a folder without any.
        """
        uri, last = storage.join(folder, report.NAME), storage.join(folder, SCORES)
        evaluated: dict[str, Any] = {}
        scores: Callable[[str], Mapping[str, ItemScores]] = partial(read_items, folder)
        if storage.exists(uri):
            evaluated = storage.read_json(uri)
            metrics = report.metrics_of(evaluated)
        elif storage.exists(last):
            content = storage.read_bytes(last)
            metrics, scores = metrics_of(content), partial(_of_set, scores_of(content))
        else:
            raise ValueError(f"{uri} does not exist: {folder} has not been evaluated (pipelines/evaluate.py does it)")
        config = storage.join(folder, run_folder.NAME)
        training = storage.read_json(config)["training"] if storage.exists(config) else {}
        return cls(
            name=folder.rstrip("/").rsplit("/", 1)[1],
            settings=_flat(training),
            metrics=metrics,
            sets=evaluated.get("inputs", {}).get("sets", {}),
            curve=read_metrics(folder),
            scores=scores,
        )

    @classmethod
    def tracked(cls, client: Any, run_id: str) -> "RunRecord":
        """The record from MLflow, wherever the run's folder is. Raises ValueError for a run without an evaluation."""
        run, kept = client.get_run(run_id), {a.path for a in client.list_artifacts(run_id)}
        name = run.info.run_name
        if not {report.NAME, SCORES} <= kept:
            raise ValueError(f"runs:/{run_id} ({name}) has no {report.NAME} and {SCORES}: it has not been evaluated")

        with tempfile.TemporaryDirectory() as place:
            files = {
                file: Path(client.download_artifacts(run_id, file, place)).read_bytes()
                for file in kept & {report.NAME, SCORES, run_folder.NAME}
            }
        evaluated, scores = json.loads(files[report.NAME]), scores_of(files[SCORES])
        metrics = report.metrics_of(evaluated)
        lines: dict[int, dict[str, Any]] = {}
        for logged in (*CURVES, *headline(metrics)):
            for point in client.get_metric_history(run_id, published(logged)):
                lines.setdefault(point.step, {"step": point.step})[logged] = point.value
        return cls(
            name=name,
            settings=_flat(json.loads(files.get(run_folder.NAME, b"{}"))),
            metrics=metrics,
            sets=evaluated["inputs"]["sets"],
            curve=[lines[step] for step in sorted(lines)],
            scores=partial(_of_set, scores),
        )

    def items(self, metric: str) -> ItemScores:
        """Scores of the items of a metric. Raises ValueError where the evaluation stored none that give its value."""
        data, _, name = metric.partition("/")
        found = self.scores(data).get(name)
        if found is None or abs(found.value - self.metrics[metric].value) > ROUNDING:
            raise ValueError(f"{self.name} stored no scores of single items with it; evaluate it again")
        return found


def _of_set(scores: Mapping[str, Mapping[str, ItemScores]], data: str) -> Mapping[str, ItemScores]:
    return scores.get(data, {})


@dataclass(frozen=True)
class PairedTest:
    """A metric of two groups of runs: their difference, or why there is none."""

    metric: str
    difference: Difference | None
    sentence: str

    def cells(self) -> list[str]:
        """Metric, difference, interval, sentence."""
        d = self.difference
        numbers = ["–", "–"] if d is None else [f"{d.value:+.3f}", f"{d.low:+.3f} to {d.high:+.3f}"]
        return [self.metric, *numbers, self.sentence]


@dataclass(frozen=True)
class Comparison:
    """Two or more runs. Raises ValueError where their names clash, and for a metric that no run has."""

    runs: Sequence[RunRecord]
    tested: Sequence[str] = ()
    """Metrics to test besides the headline of each set."""

    def __post_init__(self) -> None:
        names = [run.name for run in self.runs]
        if len(names) < 2 or len(set(names)) < len(names):
            raise ValueError(
                f"two or more runs of distinct names can be compared; these are {', '.join(names) or 'none'}"
            )
        if unknown := [name for name in self.tested if name not in self.metrics()]:
            raise ValueError(f"no run has the metric {unknown[0]}; there are {', '.join(self.metrics())}")

    def differences(self) -> dict[str, list[Any]]:
        """Settings that not all runs share, with the value of each run (None: it has no such setting)."""
        keys = dict.fromkeys(key for run in self.runs for key in run.settings)
        values = {key: [run.settings.get(key) for run in self.runs] for key in keys}
        return {key: of_runs for key, of_runs in values.items() if any(v != of_runs[0] for v in of_runs)}

    def metrics(self) -> dict[str, list[Metric | None]]:
        """Every metric that a run has, with that of each run."""
        names = dict.fromkeys(name for run in self.runs for name in run.metrics)
        return {name: [run.metrics.get(name) for run in self.runs] for name in names}

    def of_other_sets(self) -> list[str]:
        """Sets whose numbers do not compare: of one name, and not of the same files in all runs that have them."""
        digests: dict[str, set[str]] = {}
        for run in self.runs:
            for name, digest in run.sets.items():
                digests.setdefault(name, set()).add(digest)
        return [name for name, of_runs in digests.items() if len(of_runs) > 1]

    def _compares(self, metric: str) -> bool:
        return not any(metric.startswith(f"{name}/") for name in self.of_other_sets())

    def _marked(self, metric: str) -> str:
        return metric if self._compares(metric) else f"{metric} †"

    def _cells(self, metric: str, values: Sequence[Metric | None], best: str) -> list[str]:
        """A value a run, the highest written as `best` says, unless the sets differ."""
        highest = max(v.value for v in values if v is not None) if self._compares(metric) else None
        return [
            "–" if v is None else best.format(f"{v.value:.3f}") if v.value == highest else f"{v.value:.3f}"
            for v in values
        ]

    def _warning(self) -> str:
        """Warning before the metrics; empty where all runs were evaluated on the same sets."""
        if not (names := self.of_other_sets()):
            return ""
        return (
            f"Not the same evaluation set in all runs, though of one name: {', '.join(names)}. Its numbers (†) do not "
            "compare; evaluate the runs on one set."
        )

    def groups(self) -> list[list[RunRecord]]:
        """Runs that differ in nothing but the seed, in the order of the first of each; runs that say nothing of their
        settings are each a group."""
        groups: dict[str, list[RunRecord]] = {}
        for run in self.runs:
            alike = {key: value for key, value in run.settings.items() if key != "seed"}
            groups.setdefault(repr(alike) if alike else run.name, []).append(run)
        return list(groups.values())

    def repeated(self) -> list[tuple[str, list[RunRecord]]]:
        """Groups with the name of their runs without the seed; empty where no seed was repeated."""
        groups = self.groups()
        if all(len(group) == 1 for group in groups):
            return []
        return [(f"{_without_seed(group)} ({len(group)})", group) for group in groups]

    @cached_property
    def tests(self) -> dict[str, list[PairedTest]]:
        """The first group against each other one, metric by metric, by the names of both."""
        first, *others = self.groups()
        names = headline(self.metrics()) + [name for name in self.metrics() if name.endswith(f"/{OVER_CAPTIONS}")]
        wanted = list(dict.fromkeys([*names, *self.tested]))
        return {
            f"{_without_seed(other)} − {_without_seed(first)}": [self._test(name, first, other) for name in wanted]
            for other in others
        }

    def _test(self, metric: str, first: Sequence[RunRecord], second: Sequence[RunRecord]) -> PairedTest:
        if not self._compares(metric):
            return PairedTest(metric, None, "Not compared: the evaluation sets of this name differ between the runs.")
        if missing := [run.name for run in (*first, *second) if metric not in run.metrics]:
            return PairedTest(metric, None, f"Not compared: {missing[0]} has no such metric.")
        try:
            found = difference(*([run.items(metric) for run in group] for group in (first, second)))
        except ValueError as error:
            return PairedTest(metric, None, f"Not compared: {error}.")
        return PairedTest(metric, found, found.conclusion(_without_seed(first), _without_seed(second)))

    def spreads(self) -> dict[str, list[str]]:
        """Every metric with its mean and standard deviation over the seeds of each repeated configuration."""
        groups = [group for _, group in self.repeated()]
        names = self.metrics() if groups else {}
        return {n: [_spread([r.metrics[n].value for r in g if n in r.metrics]) for g in groups] for n in names}

    def markdown(self) -> str:
        """Tables: settings that differ, metrics with the best of each row in bold, and means over seeds."""
        heads = " | ".join(run.name for run in self.runs)
        rule = " | ".join("---:" for _ in self.runs)
        settings = [f"| {key} | {' | '.join(map(str, values))} |" for key, values in self.differences().items()]
        metrics = [
            f"| {self._marked(name)} | {_chance(values):.3f} | {' | '.join(self._cells(name, values, '**{}**'))} |"
            for name, values in self.metrics().items()
        ]
        lines = [f"| setting | {heads} |", f"| --- | {rule} |", *settings, ""]
        lines += [self._warning(), ""] if self.of_other_sets() else []
        lines += [f"| metric | chance | {heads} |", f"| --- | ---: | {rule} |", *metrics, ""]
        if groups := self.repeated():
            lines += [f"| mean ± sd over seeds | chance | {' | '.join(name for name, _ in groups)} |"]
            lines += [f"| --- | ---: | {' | '.join('---:' for _ in groups)} |"]
            lines += [
                f"| {self._marked(name)} | {_chance(self.metrics()[name]):.3f} | {' | '.join(cells)} |"
                for name, cells in self.spreads().items()
            ]
            lines += [""]
        for name, tests in self.tests.items():
            lines += [f"| {name} | difference | 95 % interval | what can be concluded |", "| --- | ---: | ---: | --- |"]
            lines += [f"| {' | '.join(test.cells())} |" for test in tests] + [""]
        return "\n".join([*lines, ONE_BY_ONE, ""] if self.tests else lines)

    def html(self) -> str:
        """One page with the headline, both tables, the metrics as bars, and the training curves."""
        names, metrics = [run.name for run in self.runs], self.metrics()
        rows = {
            name: [self._marked(name), f"{_chance(values):.3f}", *self._cells(name, values, "*{}")]
            for name, values in metrics.items()
        }
        return render(
            "comparison.html",
            title="Comparison",
            headlines=(),
            facts={},
            names=names,
            warning=self._warning(),
            firsts=[rows[name] for name in headline(metrics)],
            tests={name: [test.cells() for test in tests] for name, tests in self.tests.items()},
            differences=self._differences(),
            one_by_one=ONE_BY_ONE,
            differing=[[key, *map(str, values)] for key, values in self.differences().items()],
            curves=self._curves(),
            bars=self._bars(),
            metrics=list(rows.values()),
            groups=[name for name, _ in self.repeated()],
            seeds=[[self._marked(n), f"{_chance(metrics[n]):.3f}", *cells] for n, cells in self.spreads().items()],
        )

    def _differences(self) -> dict[str, str]:
        """The intervals of each pair of groups."""
        found = {
            name: {test.metric: test.difference for test in tests if test.difference}
            for name, tests in self.tests.items()
        }
        return {
            name: svg(figures.differences({m: (d.value, d.low, d.high) for m, d in of.items()}, name))
            for name, of in found.items()
            if of
        }

    def _bars(self) -> dict[str, str]:
        """The metrics that all runs have of one set, one figure for each set."""
        shared = {
            name: values
            for name, values in self.metrics().items()
            if all(v is not None for v in values) and self._compares(name)
        }
        parts: dict[str, str] = {}
        for data in dict.fromkeys(name.split("/")[0] for name in shared):
            of_set = {name.split("/", 1)[1]: values for name, values in shared.items() if name.startswith(data + "/")}
            bars = {run.name: [v[i].value for v in of_set.values()] for i, run in enumerate(self.runs)}  # type: ignore[union-attr]
            parts[data] = svg(figures.grouped_bars(bars, list(of_set), [_chance(v) for v in of_set.values()]))
        return parts

    def _curves(self) -> str:
        """Loss, learning rate and the headlines that were evaluated on the way, in all runs."""
        logged = [{key for line in run.curve for key in line} for run in self.runs]
        names = [n for n in (*CURVES, *headline(self.metrics())) if all(n in of_run for of_run in logged)]
        panels = {
            name: {run.name: [(line["step"], line[name]) for line in run.curve if name in line] for run in self.runs}
            for name in names
        }
        # a metric of the end alone is a point, which the table tells better
        panels = {n: p for n, p in panels.items() if all(len(points) > 1 for points in p.values())}
        return svg(figures.curves(panels)) if panels else ""


def _flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in values.items():
        flat |= _flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {prefix + name: value}
    return flat


def _without_seed(group: Sequence[RunRecord]) -> str:
    name = group[0].name
    return re.sub(r"[-_]?(seed)?[-_]?\d+$", "", name) if len(group) > 1 else name


def _spread(values: Sequence[float]) -> str:
    if len(values) < 2:
        return f"{values[0]:.3f}" if values else "–"
    return f"{statistics.mean(values):.3f} ± {statistics.stdev(values):.3f}"


def _chance(values: Sequence[Metric | None]) -> float:
    return next(v.chance for v in values if v is not None)
