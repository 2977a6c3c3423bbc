"""The driver while trials run: keeps their records, and shows how far all have got."""

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

from ray import tune

from llip import storage
from llip.progress import bar
from pipelines.launching import CHANCE
from tune import results
from tune.results import Trial, TrialResult


class Recorder(tune.Callback):
    """Writes the record of a trial at each of its evaluations and at its end, and draws one bar for all trials.

    The bar counts images of those that are planned; a trial that ends early counts as complete.
    """

    def __init__(self, metric: str, folder: str, known: Mapping[str, TrialResult], planned: int) -> None:
        self._metric, self._folder, self._planned = metric, folder, planned
        self._results = dict(known)
        self._seen: dict[str, int] = {}
        values = [(r.metrics[metric], name) for name, r in known.items() if metric in r.metrics]
        self._best = max(values, default=(float("-inf"), ""))

    def __getstate__(self) -> dict[str, Any]:
        """Tune keeps its callbacks with the experiment; a bar belongs to one process."""
        return {name: value for name, value in vars(self).items() if name != "_bar"}

    def setup(self, *args: Any, **info: Any) -> None:
        self._bar = bar(desc="trials", total=self._planned, unit="img", unit_scale=True)

    def on_trial_start(self, iteration: int, trials: Iterable[Any], trial: Any, **info: Any) -> None:
        planned: Trial = trial.config["trial"]
        if planned.name not in self._results:  # a suggestion
            self._bar.total += planned.config.samples
        if planned.name not in self._results or self._results[planned.name].state == "failed":
            self._write(results.unfinished(planned))

    def on_trial_result(
        self, iteration: int, trials: Iterable[Any], trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        name, value = trial.config["trial"].name, result.get(self._metric, float("-inf"))
        self._write(self._results[name].evaluated(results.evaluation_of(result, CHANCE)))
        if value > self._best[0]:
            self._best = (value, name)
            self._bar.set_postfix_str(f"best {value:.4f} {name}")
        self._advance(trial.config["trial"], result["samples"])

    def on_trial_complete(self, iteration: int, trials: Iterable[Any], trial: Any, **info: Any) -> None:
        found = self._results[trial.config["trial"].name]
        self._write(replace(found, state="finished" if found.samples >= found.budget else "stopped", error=None))
        self._advance(trial.config["trial"], found.budget)

    def on_trial_error(self, iteration: int, trials: Iterable[Any], trial: Any, **info: Any) -> None:
        planned: Trial = trial.config["trial"]
        lines = str(trial.get_error() or "its process died").strip().splitlines()
        self._write(replace(self._results[planned.name], state="failed", error=lines[-1]))
        self._bar.write(f"{planned.name} failed: {lines[-1]}")
        self._advance(planned, planned.config.samples)

    def on_experiment_end(self, trials: Iterable[Any], **info: Any) -> None:
        self._bar.close()

    def _write(self, result: TrialResult) -> None:
        self._results[result.name] = result
        results.write(storage.join(self._folder, result.name), result)

    def _advance(self, trial: Trial, samples: int) -> None:
        self._bar.update(samples - self._seen.get(trial.name, 0))
        self._seen[trial.name] = samples
