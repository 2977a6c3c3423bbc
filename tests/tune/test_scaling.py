"""What scaling trains, what it refuses, how it goes on, and its report on trials that follow known laws."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from llip import storage
from llip.evaluation.evaluate import Outcome
from llip.evaluation.item_scores import ItemScores
from llip.evaluation.metrics import Metric
from llip.fields import override
from llip.recipes import recipe
from pipelines.evaluation_cache import SCORES, scores_file
from tune import clock, scaling_report, trials
from tune.clock import Clock, StepCost
from tune.laws import Law
from tune.results import Evaluation, TrialResult, unfinished
from tune.scaling import Grid, Scaling, of_size, scaling
from tune.trials import TrialPlan

METRIC = "scenes_in_style/text_to_image_map_over_types"
FLOPS = {"mini": 1e9, "tiny": 4e9, "small": 16e9}
LOSS = Law(floor=0.8, a=0.3, alpha=0.6, b=0.5, beta=0.8, size_unit=4.0, steps_unit=900)
LACKS = Law(floor=0.02, a=0.05, alpha=0.5, b=0.1, beta=0.7, size_unit=4.0, steps_unit=900)


@pytest.mark.parametrize("size", ["mini", "tiny", "small"])
@pytest.mark.parametrize("name", ["llip_dense_{}_k8", "clip_{}"])
def test_sizes_are_the_recipes(size: str, name: str) -> None:
    base = recipe(name.format("tiny"))
    assert override(base, of_size(size, base)) == recipe(name.format(size))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"sizes": ("mini", "tiny", "giant")}, "--sizes giant: there are mini, tiny, small, b32"),
        ({"sizes": ("mini", "tiny", "tiny")}, "--sizes mini tiny tiny: a law and what is left out need 3"),
        ({"lengths": (1, 2, 3)}, "--lengths 1 2 3: a law and what is left out need 4"),
        ({"overrides": {"steps": 3}}, "steps is given; leave it out: --lengths says"),
        ({"seeds": 0}, "--seeds is 0; it has to be at least 1"),
    ],
)
def test_contradictions_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        scaling(Scaling(**settings))


@pytest.fixture
def grid(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Grid:
    """Trials that follow known laws instead of being trained."""
    costs = {size: StepCost(seconds=flops / 2e10, caption_tokens=9) for size, flops in FLOPS.items()}
    monkeypatch.setattr(clock, "measured", lambda plan, configs: Clock(costs, FLOPS))
    monkeypatch.setattr(trials, "run", _run)
    plan = TrialPlan(
        folder=str(tmp_path), shards="", evaluation="", tracking=None, parent_run_id=None,  # type: ignore[arg-type]
        metric=METRIC, workers=0, concurrency=None,
    )  # fmt: skip
    return Grid(plan, Scaling())


TRAINED: list[str] = []


def _run(plan: TrialPlan) -> Mapping[str, TrialResult]:
    found = {}
    for name, trial in plan.trials.items():
        TRAINED.append(name)
        gigaflops, steps = FLOPS[trial.point.field("size")] / 1e9, trial.config.total_steps
        noise = 1 + 0.001 * (trial.config.seed - 0.5)
        folder, value = plan.trial_folder(name), 1 - noise * LACKS(gigaflops, steps)
        lines = [{"step": step, "loss": noise * LOSS(gigaflops, steps)} for step in (steps - 1, steps)]
        lines.insert(0, {"step": 1, "loss": 9.0})
        storage.write_bytes(f"{folder}/metrics.jsonl", "\n".join(map(json.dumps, lines)).encode())
        scores = ItemScores(score_I=np.full(30, value), chance=0.1, units={"images": np.arange(30)})
        short = METRIC.partition("/")[2]
        data: Any = SimpleNamespace(name="scenes_in_style")
        outcome = Outcome(data, {short: Metric(value, 0.1)}, {short: scores}, {})
        storage.write_bytes(f"{folder}/{SCORES}", scores_file([outcome]))
        done = Evaluation(step=steps, samples=trial.config.samples, metrics={METRIC: value}, chance={METRIC: 0.1})
        found[name] = TrialResult(
            point=trial.point,
            seed=trial.config.seed,
            budget=trial.config.samples,
            evaluations=(done,),
            state="finished",
        )
    return found


def test_the_longest_are_trained_first_seed_by_seed_and_the_cost_is_told(grid: Grid) -> None:
    TRAINED.clear()
    seconds = 2 * (300 + 600 + 1200 + 2400) * sum(FLOPS.values()) / 2e10 + 24 * clock.TRIAL_SECONDS
    assert grid.cost().startswith(f"24 trials, about {seconds / 3600 / len(os.sched_getaffinity(0)):.1f} hours")
    grid.train(0)
    grid.train(1)
    assert TRAINED[0] == "small-2400steps-seed0" and TRAINED[11] == "mini-300steps-seed0"
    assert {name[-1] for name in TRAINED[:12]} == {"0"} and {name[-1] for name in TRAINED[12:]} == {"1"}


def test_the_report_finds_the_laws_and_predicts_what_it_left_out(grid: Grid) -> None:
    grid.train(0)
    grid.train(1)
    found = grid.found()
    loss, lacks = scaling_report.fitted(found)
    for of, law in ((loss, LOSS), (lacks, LACKS)):
        assert of.law is not None and [p.left_out for p in of.predictions] == [
            "the longest run of the largest model",
            "the longest run of every size",
        ]
        assert of.law(16, 2400) == pytest.approx(law(16, 2400), rel=1e-2)
        assert all(p.error < 0.01 for p in of.predictions)
    files = scaling_report.files(found)
    lines = files[scaling_report.TABLE].decode().splitlines()
    value = LOSS(16, 2400)
    assert any(line.startswith("| small | 2,400 | 2 | 16.00 | 38.40 |") and f"{value:.3f}" in line for line in lines)
    assert any(f"{value:.3f} measured (" in line and "without the longest run of the largest" in line for line in lines)
    assert files[scaling_report.FIGURE].startswith(b"\x89PNG")
    assert b"Scaling" in files[scaling_report.PAGE]
    kept = json.loads(files[scaling_report.RESULTS])
    assert len(kept["runs"]) == 12 and kept["laws"]["training loss"]["floor"] == pytest.approx(0.8, rel=0.05)


def test_too_little_for_a_law_is_said(grid: Grid) -> None:
    grid.train(0)
    for name in [name for name in grid.results if not name.startswith("mini")]:
        grid.results[name] = unfinished(next(t for of in grid.trials.values() for t in of if t.name == name))
    text = scaling_report.files(grid.found())[scaling_report.TABLE].decode()
    assert "no law yet" in text and "| mini | 300 | 1 |" in text and "| tiny |" not in text
