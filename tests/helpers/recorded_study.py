"""A study whose trials reach made-up values: what its rounds decide and its report says needs no training."""

from llip.recipes import recipe
from tune import study_report
from tune.points import Point
from tune.results import Evaluation, Trial, TrialResult
from tune.study import Rounds, Study
from tune.trials import TrialPlan

METRIC = "scenes_in_style/text_to_image_map_over_kinds"
KINDS = ("object", "place")
BATCH = recipe("llip_tiny_k8").data.batch_size


class Recorded(Rounds):
    """Rounds whose trials reach a made-up value instead of being trained."""

    def _run(self, part: str, planned: list[Trial]) -> dict[str, TrialResult]:
        return {trial.name: _result(trial) for trial in planned}

    def _rate(self, point: Point) -> float:
        return {"clip": 300.0, "siglip": 250.0}.get(str(point), 200.0)


def recorded() -> Recorded:
    """Two seeds of 100 steps, Llip with K of 4 and 8."""
    plan = TrialPlan(
        folder="memory://study", shards="", evaluation="", tracking=None, parent_run_id=None,  # type: ignore[arg-type]
        metric=METRIC, workers=0, concurrency=None,
    )  # fmt: skip
    return Recorded(plan, Study(seeds=2, overrides={"steps": 100}, ks=(4, 8), head_counts=(4,)))


def files(rounds: Recorded) -> dict[str, bytes]:
    """The report of the study by file name."""
    choices = rounds.choose()
    return study_report.files(METRIC, choices, rounds.equal_steps(choices), rounds.equal_time(choices))


def _result(trial: Trial) -> TrialResult:
    config = trial.config
    value = 0.5 - abs(config.optimizer.learning_rate - 2e-3) + 0.01 * config.seed
    metrics = {METRIC: value} | {f"scenes_in_style/text_to_image_map/{kind}": value / 2 for kind in KINDS}
    evaluation = Evaluation(
        step=config.total_steps, samples=config.samples, metrics=metrics, chance=dict.fromkeys(metrics, 0.1)
    )
    return TrialResult(
        point=trial.point, seed=config.seed, budget=config.samples, evaluations=(evaluation,), state="finished"
    )
