"""The small-scale study: objectives, Llip's ablations, K and heads, over seeds, at equal steps and at equal time.

    uv run tune/study.py                          # the built-in corpus
    uv run tune/study.py --seeds 5 --steps 2400 --name longer

Three rounds of trials under Ray Tune. First CLIP, SigLIP and Llip each choose a learning rate, an initial scale, an
initial bias and a temperature, as far as they have them, on a seed of its own; the ablations take Llip's. Then every
variant trains for the same steps. Last, CLIP and SigLIP train for as long as Llip took. Run again, it goes on where it
was.
"""

import statistics
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from itertools import product
from typing import TYPE_CHECKING, Any

from llip import storage
from llip.config import TrainingConfig
from llip.fields import find_leaf, override
from pipelines import command
from tune import experiment
from tune.experiment import Experiment
from tune.points import Point

if TYPE_CHECKING:  # torch and Ray are imported once the options are right, so that --help and a refusal come at once
    from tune.results import Trial, TrialResult
    from tune.trials import TrialPlan

BASELINES = ("clip", "siglip")
TUNED = (*BASELINES, "llip")
UNQUERIED = {"model.head.heads": 8, "model.head.temperature": 5.0}
"""What a head has that no query mixes for."""
SINGLE = {"model.head.kind": "class_token", "model.vision.tokens": 1} | UNQUERIED
OBJECTIVES: dict[str, dict[str, Any]] = {
    "clip": SINGLE | {"objective.loss": "softmax"},
    "siglip": SINGLE,
    "register": {"model.head.kind": "register"} | UNQUERIED,
    "mean": {"model.head.kind": "mean"} | UNQUERIED,
    "learned_query": {"model.head.kind": "learned_query"},
    "llip": {},
}
"""What makes each objective and ablation of Llip."""
CHOICE_SEED = 1000
"""Settings are chosen on a seed that no reported trial has."""
TOKENS, HEADS, TEMPERATURE = "model.vision.tokens", "model.head.heads", "model.head.temperature"
DECIDED = {
    "optimizer.learning_rate": "--learning-rates are what it is chosen from",
    "model.init_logit_scale": "--logit-scales are what it is chosen from",
    "model.init_logit_bias": "--logit-biases are what it is chosen from",
    TEMPERATURE: "--temperatures are what it is chosen from",
    "seed": "--seeds says how many each variant has",
    "evaluate_every": "a trial is evaluated at its end",
}
"""Settings that a study decides itself, with the option for it."""


@dataclass(frozen=True, kw_only=True)
class Study(Experiment):
    """What is compared, on what, and for how long."""

    ks: tuple[int, ...] = (1, 4, 8, 16)
    """Numbers of mixture tokens, at the recipe's heads."""
    head_counts: tuple[int, ...] = (1, 4, 8)
    """Numbers of heads, at the recipe's K."""
    seeds: int = 3
    learning_rates: tuple[float, ...] = (5e-4, 1e-3)
    """Highest learning rates to choose from."""
    logit_scales: tuple[float, ...] = (10.0, 1 / 0.07)
    """Initial scales to choose from."""
    logit_biases: tuple[float, ...] = (-10.0, -5.0)
    """Initial biases for SigLIP and Llip to choose from."""
    temperatures: tuple[float, ...] = (5.0,)
    """Temperatures of the mixing for Llip to choose from."""
    choice_share: float = 0.4
    """Steps of a trial that chooses settings, as a share of `steps`."""
    metric: str = "scenes_in_style/text_to_image_map_over_kinds"
    """What settings are chosen by, and what is plotted."""
    name: str = "small_scale"
    """Name of the study."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.choice_share <= 1:
            raise ValueError(f"--choice-share is {self.choice_share}; it has to be in (0, 1]")

    @property
    def total_steps(self) -> int:
        return self.training().total_steps

    def point(self, objective: str, tokens: int | None = None, heads: int | None = None) -> Point:
        """An objective, with the recipe's K and heads where none are given, as far as it has them."""
        head = OBJECTIVES[objective]
        model = self.training().model
        fields = {}
        if TOKENS not in head:
            fields[TOKENS] = tokens or model.vision.tokens
        if HEADS not in head:
            fields[HEADS] = heads or model.head.heads
        parts = {"k": fields.get(TOKENS), "m": fields.get(HEADS)}
        name = "-".join([objective, *(f"{short}{count}" for short, count in parts.items() if count is not None)])
        return Point(
            name=name,
            recipe=self.recipe,
            values=tuple((head | fields).items()),
            fields=(("objective", objective), *fields.items()),
        )

    def variants(self) -> list[Point]:
        """What is trained for equal steps, each once."""
        points = [self.point(o) for o in ("llip", *BASELINES, "register", "mean", "learned_query")]
        points += [self.point("llip", tokens=k) for k in self.ks]
        points += [self.point("llip", heads=m) for m in self.head_counts]
        return list(dict.fromkeys(points))


@dataclass(frozen=True, kw_only=True)
class OwnSettings:
    """Settings that an objective has of its own."""

    learning_rate: float
    logit_scale: float
    logit_bias: float | None
    temperature: float | None

    def __str__(self) -> str:
        values = {"lr": self.learning_rate, "scale": self.logit_scale, "bias": self.logit_bias, "tau": self.temperature}
        return "-".join(f"{name}{value:.3g}" for name, value in values.items() if value is not None)


def check(settings: Study) -> None:
    """Raises ValueError for what cannot be studied, or is what the study finds."""
    if wrong := settings.fixed().keys() & DECIDED:
        raise ValueError(f"{min(wrong)} is given; leave it out: {DECIDED[min(wrong)]}")
    config = settings.training()
    if config.model.head.kind != "text_query":
        raise ValueError(f"--recipe {settings.recipe} is not one of Llip: its K and heads are what is studied")
    experiment.check_workers(settings.workers, config, settings.recipe)


def study(settings: Study) -> str:
    """Run what is left of the study and report it; returns the table. Raises ValueError before any work."""
    from tune import study_report

    check(settings)
    heads = {OBJECTIVES[o].get("model.head.kind", "text_query") for o in OBJECTIVES}
    plan = experiment.prepare(settings, settings.place("studies"), "study", _fixed(settings), heads)
    rounds = Rounds(plan, settings)
    choices = rounds.choose()
    results = rounds.equal_steps(choices)
    _write(plan.folder, study_report.files(settings.metric, choices, results, []))
    files = study_report.files(settings.metric, choices, results, rounds.equal_time(choices))
    _write(plan.folder, files)
    table = files[study_report.TABLE].decode()
    experiment.log_report(plan, settings, files, {}, table)
    print(f"\n{table}\nplot         {storage.join(plan.folder, study_report.FIGURE)}")
    return table


def _fixed(settings: Study) -> dict[str, Any]:
    """What a study goes on with: all but where, and how much at a time."""
    learned = {p: v for p, v in settings.fixed().items() if not find_leaf(TrainingConfig, p).operational}
    kept = {name: value for name, value in asdict(settings).items() if name not in ("output", "name", "concurrency")}
    return kept | {"overrides": learned}


def _write(folder: str, files: Mapping[str, bytes]) -> None:
    for name, content in files.items():
        storage.write_bytes(storage.join(folder, name), content)


@dataclass(frozen=True)
class Rounds:
    """The three rounds, each a set of trials in a folder of its own."""

    plan: "TrialPlan"
    settings: Study

    def choose(self) -> dict[str, OwnSettings]:
        """For each objective the settings that reach the highest metric in shorter trials; none for an only one."""
        s = self.settings
        steps = max(1, round(s.total_steps * s.choice_share))
        candidates = {objective: self._candidates(objective) for objective in TUNED}
        best = {objective: only[0] for objective, only in candidates.items() if len(only) == 1}
        planned, grid = list["Trial"](), {}
        for objective in [o for o in TUNED if o not in best]:
            for choice in candidates[objective]:
                point = replace(self._point(objective), name=f"{objective}-{choice}")
                trial = self._trial(point, choice, steps, CHOICE_SEED)
                planned.append(trial)
                grid[trial.name] = (objective, choice)
        results = self._run("choice", planned) if planned else {}
        reached = {name: r.metrics[s.metric] for name, r in results.items() if r.metrics}
        for name in sorted(reached, key=lambda name: reached[name]):
            best[grid[name][0]] = grid[name][1]
        if missing := [o for o in TUNED if o not in best]:
            raise ValueError(f"no trial of {', '.join(missing)} reached its end; see the errors above")
        return best

    def _candidates(self, objective: str) -> list[OwnSettings]:
        s = self.settings
        biases = (None,) if objective == "clip" else s.logit_biases
        temperatures = s.temperatures if objective == "llip" else (None,)
        return [
            OwnSettings(learning_rate=rate, logit_scale=scale, logit_bias=bias, temperature=temperature)
            for rate, scale, bias, temperature in product(s.learning_rates, s.logit_scales, biases, temperatures)
        ]

    def _point(self, objective: str) -> Point:
        """An objective with the recipe's K and heads, as far as it has them."""
        return self.settings.point(objective)

    def equal_steps(self, choices: Mapping[str, OwnSettings]) -> "list[TrialResult]":
        """Every variant for the same steps."""
        planned = [
            self._trial(point, _choice(choices, point), self.settings.total_steps, seed)
            for point in self.settings.variants()
            for seed in range(self.settings.seeds)
        ]
        return list(self._run("equal_steps", planned).values())

    def equal_time(self, choices: Mapping[str, OwnSettings]) -> "list[TrialResult]":
        """CLIP and SigLIP for the steps that they make in the time of Llip's, by the rates of the trials before."""
        s = self.settings
        llip = self._rate(self._point("llip"))
        planned = []
        for point in map(self._point, BASELINES):
            steps, choice = round(s.total_steps * self._rate(point) / llip), _choice(choices, point)
            planned += [self._trial(point, choice, steps, seed) for seed in range(s.seeds)]
        return list(self._run("equal_time", planned).values())

    def _run(self, part: str, planned: "list[Trial]") -> "dict[str, TrialResult]":
        from tune import trials

        by_name = {trial.name: trial for trial in planned}
        return trials.run(replace(self.plan, trials=by_name, folder=storage.join(self.plan.folder, part)))

    def _trial(self, point: Point, choice: OwnSettings, steps: int, seed: int) -> "Trial":
        from tune.results import Trial

        values = {
            "steps": steps,
            "optimizer.learning_rate": choice.learning_rate,
            "model.init_logit_scale": choice.logit_scale,
            "evaluate_every": steps,
            "seed": seed,
        }
        if choice.logit_bias is not None:
            values["model.init_logit_bias"] = choice.logit_bias
        if choice.temperature is not None and point.field(HEADS):
            values[TEMPERATURE] = choice.temperature
        return Trial(point=point, config=override(self.settings.training(), dict(point.values) | values))

    def _rate(self, point: Point) -> float:
        """Median images a second over the logged steps of a point's trials, which ran beside the others."""
        from llip.training.tracking import read_metrics

        part = storage.join(self.plan.folder, "equal_steps")
        plan = replace(self.plan, folder=part)
        lines = [
            line["samples_per_second"]
            for seed in range(self.settings.seeds)
            for line in read_metrics(plan.trial_folder(f"{point}-seed{seed}"))
            if "samples_per_second" in line
        ]
        return statistics.median(lines)


def _choice(choices: Mapping[str, OwnSettings], point: Point) -> OwnSettings:
    return choices.get(point.field("objective"), choices["llip"])


def cli() -> None:
    """The command line."""
    command.run(Study, study, "Compare objectives, ablations, K and heads at small scale, over seeds.")


if __name__ == "__main__":
    cli()
