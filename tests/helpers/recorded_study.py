"""A study whose trials reach made-up values: what its rounds decide and its report says needs no training."""

import math
from dataclasses import dataclass, field
from functools import cached_property
from types import SimpleNamespace
from typing import Any

import numpy as np

from llip import storage
from llip.evaluation.evaluate import Outcome
from llip.evaluation.item_scores import ItemScores
from llip.evaluation.metrics import Metric
from pipelines.evaluation_cache import SCORES, scores_file
from tune import study_report
from tune.clock import Clock, StepCost
from tune.results import Evaluation, Trial, TrialResult
from tune.study import Rounds, Study
from tune.trials import TrialPlan
from tune.variants import BASELINES, DEFAULT

SET = "scenes_in_style"
METRIC = f"{SET}/text_to_image_map_over_types"
KINDS = ("object", "place")
ITEMS = 40
SECONDS = {"clip": 0.1, "siglip": 0.1, "text_query-sigmoid": 0.16}
"""Of a step; 0.2 of the default."""
RATES = {"clip": 2e-3, "siglip": 5e-4}
"""The learning rate that is best for a variant; 1e-3 for all others."""


@dataclass(frozen=True)
class Recorded(Rounds):
    """Rounds whose trials reach a made-up value instead of being trained."""

    trained: list[str] = field(default_factory=list)
    """Names in the order in which they were asked for."""

    @cached_property
    def clock(self) -> Clock:
        costs = {v.name: StepCost(seconds=SECONDS.get(v.name, 0.2), caption_tokens=9) for v in (DEFAULT, *BASELINES)}
        return Clock(costs, {name: cost.seconds * 1e11 for name, cost in costs.items()})

    def _run(self, part: str, planned: list[Trial]) -> dict[str, TrialResult]:
        self.trained.extend(trial.name for trial in planned)
        return {trial.name: _result(trial, self.plan) for trial in planned}


def recorded(folder: str = "memory://study", **settings: Any) -> Recorded:
    """Two seeds of 100 steps, K of 4 and 8."""
    plan = TrialPlan(
        folder=folder, shards="", evaluation="", tracking=None, parent_run_id=None,  # type: ignore[arg-type]
        metric=METRIC, workers=0, concurrency=None,
    )  # fmt: skip
    given: dict[str, Any] = {"seeds": 2, "overrides": {"steps": 100}, "ks": (4, 8), "head_counts": (2,)}
    return Recorded(plan, Study(**given | settings))


def files(rounds: Recorded) -> dict[str, bytes]:
    """The report of the study by file name."""
    rounds.choose()
    for seed in range(rounds.settings.seeds):
        rounds.compare(seed)
    return study_report.files(rounds.found())


def value_of(trial: Trial) -> float:
    """What a trial reaches: more over patches, more with shared projections, and with a learning rate near its best."""
    config = trial.config
    best = RATES.get(str(trial.point.field("variant")), 1e-3)
    head = config.model.head
    value = 0.5 + 0.2 * head.patch_tokens + 0.1 * head.shared_projections + 0.002 * (config.seed % 3)
    value -= 0.02 * abs(math.log(config.optimizer.learning_rate / best)) + 0.05 * (config.model.init_logit_scale > 11)
    return value


def _result(trial: Trial, plan: TrialPlan) -> TrialResult:
    config = trial.config
    items = {METRIC: value_of(trial)} | {f"{SET}/text_to_image_map/{kind}": value_of(trial) / 2 for kind in KINDS}
    hard = np.linspace(-0.02, 0.02, ITEMS)
    scores = {
        name.partition("/")[2]: ItemScores(score_I=value + hard, chance=0.1, units={"images": np.arange(ITEMS)})
        for name, value in items.items()
    }
    metrics = {name: Metric(s.value, s.chance) for name, s in scores.items()}
    outcome: Any = Outcome(SimpleNamespace(name=SET), metrics, scores, {})  # type: ignore[arg-type]
    storage.write_bytes(storage.join(plan.trial_folder(trial.name), SCORES), scores_file([outcome]))
    evaluation = Evaluation(
        step=config.total_steps,
        samples=config.samples,
        metrics={f"{SET}/{name}": m.value for name, m in metrics.items()},
        chance={f"{SET}/{name}": 0.1 for name in metrics},
    )
    return TrialResult(
        point=trial.point, seed=config.seed, budget=config.samples, evaluations=(evaluation,), state="finished"
    )
