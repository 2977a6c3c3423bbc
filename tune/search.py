"""The source of Ray Tune's trials: those that are planned, then those that Optuna suggests."""

import json
import logging
import statistics
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ray.tune.search import Searcher

from llip.config import TrainingConfig
from tune.axes import Axis, Chosen
from tune.points import Point, Space
from tune.results import Trial, TrialResult

ATTEMPTS = 200
"""Suggestions in a row that give no new model before the space counts as exhausted."""


class Queue(Searcher):
    """Hands out trials, the planned ones first."""

    def __init__(self, planned: Iterable[Trial], metric: str, suggestions: "Suggestions | None" = None) -> None:
        super().__init__(metric=metric, mode="max")
        self._waiting = list(planned)
        self._suggestions = suggestions
        self._started: dict[str, Trial] = {}

    def suggest(self, trial_id: str) -> Any:
        """The configuration of a Ray trial: `{"trial": Trial}`."""
        if not self._waiting and self._suggestions:
            self._waiting += self._suggestions.next()
        if not self._waiting:
            return Searcher.FINISHED
        self._started[trial_id] = trial = self._waiting.pop(0)
        return {"trial": trial}

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        trial = self._started[trial_id]
        if self._suggestions:
            whole = result is not None and not error and result.get("samples", 0) >= trial.config.samples
            value = result.get(self.metric) if result is not None and whole else None
            self._suggestions.ended(trial, value)

    def save(self, checkpoint_path: str) -> None:
        """Nothing: what is left follows from the records of trials."""
        Path(checkpoint_path).touch()

    def restore(self, checkpoint_path: str) -> None:
        """Nothing: see `save`."""


@dataclass
class _Progress:
    """A point on its way: what its trials reached, by name; None for one that did not get to its end."""

    params: dict[str, Any]
    seeds: int
    token: str | None = None
    """Optuna's name of a question that is open."""
    values: dict[str, float | None] = field(default_factory=dict)

    @property
    def value(self) -> float | None:
        """Mean over the seeds that got to the end."""
        reached = [v for v in self.values.values() if v is not None]
        return statistics.mean(reached) if reached else None


class Suggestions:
    """Points that Optuna chooses by what the earlier ones reached, each trained with every seed.

    Optuna is told that a point whose settings contradict each other failed, and that an equal model reached again what
    it reached before.
    """

    def __init__(
        self,
        space: Space,
        *,
        most: int,
        seeds: int,
        metric: str,
        trials: Callable[[Point, TrainingConfig, Chosen], Sequence[Trial]],
        known: Sequence[TrialResult] = (),
    ) -> None:
        from optuna.exceptions import ExperimentalWarning
        from optuna.samplers import TPESampler
        from ray.tune.search.optuna import OptunaSearch

        logging.getLogger("optuna").setLevel(logging.WARNING)
        self.space, self.most, self.seeds, self._metric, self._trials = space, most, seeds, metric, trials
        self._points: dict[str, _Progress] = {}
        self._asked = 0
        self.planned: dict[str, Trial] = {}
        """All that was suggested, by the trial's name."""
        for result in known:
            params = self._params(result.asked)
            progress = self._points.setdefault(result.point.name, _Progress(params=params, seeds=seeds))
            if result.ended:
                progress.values[result.name] = result.metrics.get(metric) if result.finished else None
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ExperimentalWarning)
            sampler = TPESampler(seed=len(self._points), constant_liar=True)  # of trials that run side by side
        distributions = {axis.path: distribution(axis) for axis in space.axes}
        self._search = OptunaSearch(distributions, metric=metric, mode="max", sampler=sampler)
        for progress in self._points.values():
            if len(progress.values) >= seeds:
                self._tell(progress)

    def next(self) -> list[Trial]:
        """The trials of one more point; none where there are enough, or where nothing new is found."""
        if len(self._points) >= self.most:
            return []
        for _ in range(ATTEMPTS):
            token = f"asked{self._asked}"
            self._asked += 1
            params = self._search.suggest(token) or {}
            chosen = {axis.path: _chosen(axis, params[axis.path]) for axis in self.space.axes}
            try:
                point, config = self.space.point(chosen)
            except ValueError:
                self._search.on_trial_complete(token, error=True)
                continue
            if known := self._points.get(point.name):
                known_value = known.value
                self._search.on_trial_complete(token, None if known_value is None else {self._metric: known_value})
                continue
            self._points[point.name] = _Progress(params=params, seeds=self.seeds, token=token)
            trials = list(self._trials(point, config, chosen))
            self.planned |= {trial.name: trial for trial in trials}
            return trials
        return []

    def ended(self, trial: Trial, value: float | None) -> None:
        """Take in what a trial reached; Optuna hears of its point once all seeds have ended."""
        progress = self._points[trial.point.name]
        progress.values[trial.name] = value
        if len(progress.values) >= progress.seeds:
            self._tell(progress)

    def _tell(self, progress: _Progress) -> None:
        value = progress.value
        if progress.token is not None:
            self._search.on_trial_complete(progress.token, None if value is None else {self._metric: value})
        elif value is not None:
            try:
                self._search.add_evaluated_point(progress.params, value)
            except ValueError:  # of an axis that has other values now
                return

    def _params(self, asked: Mapping[str, Any]) -> dict[str, Any]:
        return {axis.path: param(axis, asked[axis.path]) for axis in self.space.axes if axis.path in asked}


def distribution(axis: Axis) -> Any:
    """An axis as Optuna has it."""
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    found = axis.distribution
    if found is None:
        return CategoricalDistribution([param(axis, value) for value in axis.values])
    if found.kind == "randint":
        return IntDistribution(int(found.low), int(found.high))
    return FloatDistribution(found.low, found.high, log=found.kind == "loguniform")


def param(axis: Axis, value: Any) -> Any:
    """A value as Optuna has it: what is listed, as text."""
    return value if axis.distribution else json.dumps(value)


def _chosen(axis: Axis, value: Any) -> Any:
    if axis.distribution:
        return axis.distribution.rounded(value)
    return next(listed for listed in axis.values if param(axis, listed) == value)
