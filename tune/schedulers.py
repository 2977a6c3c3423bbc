"""Schedulers that stop trials early, but none before it can be told: not before half of its run, nor at chance."""

import math
from collections.abc import Iterable
from types import SimpleNamespace
from typing import Any, Literal

from ray.tune.schedulers import AsyncHyperBandScheduler, TrialScheduler

from pipelines.launching import CHANCE
from tune.results import Trial, TrialResult, left_chance

Kind = Literal["asha", "hyperband", "none"]
PATIENCE = 0.5
"""Share of a trial that is always trained."""


class Patient(AsyncHyperBandScheduler):
    """Asynchronous successive halving in shares of a trial.

    asha: one decision, at half of the run: the worse half of the trials that got so far stops. hyperband: two brackets.
    One decides at half and at 0.71 of the run, the other at 0.71 alone; the worst 29 % stop.
    A trial whose metric is still at chance is left alone until it is not.
    """

    def __init__(self, kind: Kind, metric: str) -> None:
        self.watched = metric
        several = kind == "hyperband"
        super().__init__(
            time_attr="share",
            metric=metric,
            mode="max",
            grace_period=PATIENCE,  # type: ignore[arg-type]  # any number will do
            max_t=0.99,  # type: ignore[arg-type]
            reduction_factor=math.sqrt(2) if several else 2,
            brackets=2 if several else 1,
            stop_last_trials=False,
        )

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        """STOP or CONTINUE. A trial is stopped within its report, so never in that of its end."""
        planned: Trial = trial.config["trial"]
        share = result["samples"] / planned.config.samples
        metric, chance = result.get(self.watched), result.get(f"{CHANCE}{self.watched}", 0.0)
        if metric is None or not PATIENCE <= share < 1 or not left_chance(metric, chance):
            return TrialScheduler.CONTINUE
        return super().on_trial_result(tune_controller, trial, result | {"share": share})

    def recall(self, results: Iterable[tuple[Trial, TrialResult]]) -> None:
        """Take in what trials of earlier sessions reported, so that new ones are compared with them."""
        for trial, result in results:
            known: Any = SimpleNamespace(trial_id=trial.name, config={"trial": trial})
            self.on_trial_add(None, known)  # type: ignore[arg-type]
            for e in result.evaluations:
                levels = {f"{CHANCE}{name}": level for name, level in e.chance.items()}
                self.on_trial_result(None, known, {"samples": e.samples, **e.metrics, **levels})
