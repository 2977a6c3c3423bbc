"""No scheduler stops a trial that could not be told yet."""

from types import SimpleNamespace
from typing import Any

import pytest
from ray.tune.schedulers import TrialScheduler

from llip.fields import override
from llip.recipes import recipe
from pipelines.launching import CHANCE
from tune.points import Point
from tune.results import Evaluation, Trial, TrialResult
from tune.schedulers import Patient

METRIC = "scenes/text_to_image_map"
CONFIG = override(recipe("llip_tiny_k8"), {"steps": 100})
EVALUATIONS = 8


def trial(seed: int) -> Any:
    planned = Trial(point=Point(name="x", recipe="llip_tiny_k8"), config=override(CONFIG, {"seed": seed}))
    return SimpleNamespace(trial_id=planned.name, config={"trial": planned})


def decisions(scheduler: Patient, value: Any, seeds: range) -> dict[int, float]:
    """The share of its run at which each trial was stopped; trials report in turns, the best first."""
    stopped: dict[int, float] = {}
    trials = {seed: trial(seed) for seed in seeds}
    for one in trials.values():
        scheduler.on_trial_add(None, one)  # type: ignore[arg-type]
    for n in range(1, EVALUATIONS + 1):
        for seed, one in trials.items():
            if seed in stopped:
                continue
            samples = CONFIG.samples * n // EVALUATIONS
            result = {"samples": samples, METRIC: value(seed, n / EVALUATIONS), f"{CHANCE}{METRIC}": 0.1}
            if scheduler.on_trial_result(None, one, result) == TrialScheduler.STOP:
                stopped[seed] = n / EVALUATIONS
    return stopped


@pytest.mark.parametrize("kind", ["asha", "hyperband"])
def test_none_is_stopped_before_half_nor_at_its_end(kind: Any) -> None:
    stopped = decisions(Patient(kind, METRIC), lambda seed, share: 0.9 - 0.05 * seed, range(12))
    assert stopped and all(0.5 <= share < 1 for share in stopped.values())
    assert 0 not in stopped, "the best goes on"


@pytest.mark.parametrize("kind", ["asha", "hyperband"])
def test_none_is_stopped_while_at_chance(kind: Any) -> None:
    assert not decisions(Patient(kind, METRIC), lambda seed, share: 0.12 - 0.001 * seed, range(12))
    late = decisions(
        Patient(kind, METRIC), lambda seed, share: 0.9 if seed < 6 else 0.11 if share < 0.7 else 0.2, range(12)
    )
    assert all(share >= 0.7 for share in late.values())


def test_trials_of_earlier_sessions_are_compared_with() -> None:
    scheduler = Patient("asha", METRIC)
    known = trial(0).config["trial"]
    half = Evaluation(step=50, samples=CONFIG.samples // 2, metrics={METRIC: 0.8}, chance={METRIC: 0.1})
    scheduler.recall([(known, TrialResult(point=known.point, seed=0, budget=CONFIG.samples, evaluations=(half,)))])
    assert decisions(scheduler, lambda seed, share: 0.5, range(1, 2)) == {1: 0.5}
