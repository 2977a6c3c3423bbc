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
from dataclasses import dataclass, replace
from itertools import product

from llip import storage
from llip.recipes import recipe
from llip.training.tracking import read_metrics
from pipelines import command
from tune import experiment, study_report, trials
from tune.experiment import Experiment
from tune.report import TrialResult
from tune.space import Objective, Point, configured

BASELINES: tuple[Objective, ...] = ("clip", "siglip")
TUNED: tuple[Objective, ...] = (*BASELINES, "llip")
CHOICE_SEED = 1000
"""Settings are chosen on a seed that no reported trial has."""


@dataclass(frozen=True, kw_only=True)
class Study(Experiment):
    """What is compared, on what, and for how long."""

    recipe: str = "llip_tiny_k8"
    """An Llip recipe to start from; its K and heads are those of the ablations."""
    k: tuple[int, ...] = (1, 4, 8, 16)
    """Numbers of mixture tokens, at the recipe's heads."""
    heads: tuple[int, ...] = (1, 4, 8)
    """Numbers of heads, at the recipe's K."""
    seeds: int = 3
    """Trials of each variant, with seeds 0, 1, …"""
    steps: int | None = None
    """Optimizer steps of a trial; the recipe's where not given."""
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
        base = recipe(self.recipe)
        if base.model.head.kind != "text_query":
            raise ValueError(f"--recipe {self.recipe} is not one of Llip: its K and heads are what is studied")

    @property
    def total_steps(self) -> int:
        return self.steps or recipe(self.recipe).total_steps

    def variants(self) -> list[Point]:
        """What is trained for equal steps, each once."""
        model = recipe(self.recipe).model
        tokens, heads = model.mixture_tokens, model.head.heads
        points = [Point(objective="llip", k=tokens, heads=heads), *(Point(objective=o) for o in BASELINES)]
        points += [Point(objective="register", k=tokens), Point(objective="mean", k=tokens)]
        points += [Point(objective="learned_query", k=tokens, heads=heads)]
        points += [Point(objective="llip", k=k, heads=heads) for k in self.k]
        points += [Point(objective="llip", k=tokens, heads=m) for m in self.heads]
        return list(dict.fromkeys(points))


@dataclass(frozen=True, kw_only=True)
class Choice:
    """Settings that an objective has of its own."""

    learning_rate: float
    logit_scale: float
    logit_bias: float | None
    temperature: float | None

    def __str__(self) -> str:
        values = {"lr": self.learning_rate, "scale": self.logit_scale, "bias": self.logit_bias, "tau": self.temperature}
        return "-".join(f"{name}{value:.3g}" for name, value in values.items() if value is not None)


def study(settings: Study) -> str:
    """Run what is left of the study and report it; returns the table. Raises ValueError before any work."""
    plan, parent = experiment.prepare(settings, "studies", "study", asha=False)
    rounds = Rounds(plan, settings)
    choices = rounds.choose()
    results = rounds.equal_steps(choices)
    _write(plan.folder, study_report.files(settings.metric, choices, results, []))
    files = study_report.files(settings.metric, choices, results, rounds.equal_time(choices))
    _write(plan.folder, files)
    if parent:
        experiment.log_report(parent, settings, files, {})
    table = files[study_report.TABLE].decode()
    print(f"\n{table}\nplot         {storage.join(plan.folder, study_report.FIGURE)}")
    return table


def _write(folder: str, files: Mapping[str, bytes]) -> None:
    for name, content in files.items():
        storage.write_bytes(storage.join(folder, name), content)


@dataclass(frozen=True)
class Rounds:
    """The three rounds, each a set of trials in a folder of its own."""

    plan: trials.Plan
    settings: Study

    def choose(self) -> dict[Objective, Choice]:
        """For each objective the settings that reach the highest metric in shorter trials; none for an only one."""
        s = self.settings
        steps = max(1, round(s.total_steps * s.choice_share))
        candidates = {objective: self._candidates(objective) for objective in TUNED}
        best = {objective: only[0] for objective, only in candidates.items() if len(only) == 1}
        grid = {
            f"{o}-{choice}": (o, choice) for o, several in candidates.items() if o not in best for choice in several
        }
        planned = {n: self._trial(self._point(o), choice, steps, CHOICE_SEED) for n, (o, choice) in grid.items()}
        results = self._run("choice", planned) if planned else {}
        reached = {name: r.metrics[s.metric] for name, r in results.items() if r.metrics}
        for name in sorted(reached, key=lambda name: reached[name]):
            best[grid[name][0]] = grid[name][1]
        if missing := [o for o in TUNED if o not in best]:
            raise ValueError(f"no trial of {', '.join(missing)} reached its end; see the errors above")
        return best

    def _candidates(self, objective: Objective) -> list[Choice]:
        s = self.settings
        biases = (None,) if objective == "clip" else s.logit_biases
        temperatures = s.temperatures if objective == "llip" else (None,)
        return [
            Choice(learning_rate=rate, logit_scale=scale, logit_bias=bias, temperature=temperature)
            for rate, scale, bias, temperature in product(s.learning_rates, s.logit_scales, biases, temperatures)
        ]

    def _point(self, objective: Objective) -> Point:
        """An objective with the recipe's K and heads, as far as it has them."""
        return next(p for p in self.settings.variants() if p.objective == objective)

    def equal_steps(self, choices: Mapping[Objective, Choice]) -> list[TrialResult]:
        """Every variant for the same steps."""
        planned = {
            f"{point}-seed{seed}": self._trial(point, _choice(choices, point), self.settings.total_steps, seed)
            for point in self.settings.variants()
            for seed in range(self.settings.seeds)
        }
        return list(self._run("equal_steps", planned).values())

    def equal_time(self, choices: Mapping[Objective, Choice]) -> list[TrialResult]:
        """CLIP and SigLIP for the steps that they make in the time of Llip's, by the rates of the trials before."""
        s = self.settings
        llip = self._rate(self._point("llip"))
        planned = {}
        for point in map(self._point, BASELINES):
            steps = round(s.total_steps * self._rate(point) / llip)
            for seed in range(s.seeds):
                planned[f"{point}-seed{seed}"] = self._trial(point, choices[point.objective], steps, seed)
        return list(self._run("equal_time", planned).values())

    def _run(self, part: str, planned: dict[str, trials.Trial]) -> dict[str, TrialResult]:
        return trials.run(replace(self.plan, trials=planned, folder=storage.join(self.plan.folder, part)))

    def _trial(self, point: Point, choice: Choice, steps: int, seed: int) -> trials.Trial:
        values = {
            "steps": steps,
            "learning_rate": choice.learning_rate,
            "logit_scale": choice.logit_scale,
            "logit_bias": choice.logit_bias,
            "temperature": choice.temperature if point.heads else None,
            "evaluate_every": steps,
            "seed": seed,
        }
        return trials.Trial(point=point, config=configured(self.settings.recipe, point, values))

    def _rate(self, point: Point) -> float:
        """Median images a second over the logged steps of a point's trials, which ran beside the others."""
        part = storage.join(self.plan.folder, "equal_steps")
        plan = replace(self.plan, folder=part)
        lines = [
            line["samples_per_second"]
            for seed in range(self.settings.seeds)
            for line in read_metrics(plan.trial_folder(f"{point}-seed{seed}"))
            if "samples_per_second" in line
        ]
        return statistics.median(lines)


def _choice(choices: Mapping[Objective, Choice], point: Point) -> Choice:
    return choices.get(point.objective, choices["llip"])


def cli() -> None:
    """The command line."""
    command.run(Study, study, "Compare objectives, ablations, K and heads at small scale, over seeds.")


if __name__ == "__main__":
    cli()
