"""The small-scale study: loss x head, K and heads, over seeds, at equal steps, at equal FLOPs and at equal time.

    uv run tune/study.py                                                     # the built-in corpus; hours
    uv run tune/study.py --seeds 3 --only clip siglip text_query-sigmoid text_query_patches_shared-softmax   # a piece
    uv run tune/study.py --recipe llip_dense_tiny_k8 --name tiny             # larger towers, twice as long

First the clock: seconds of a training step, one model at a time. Then every head with either loss chooses a learning
rate, an initial scale, an initial bias and a mixing temperature, as far as it has them, one after the other from the
recipe's own, in trials on a seed of its own; what varies K or heads takes its head's. Then every variant trains
for the same steps, and CLIP, SigLIP and the paper's Llip also for the steps that fit into the FLOPs and into the time
of the default recipe: all of them on one seed, then on the next, with the report written after each. Run again, it goes
on where it was; other variants and more seeds add what is missing.
"""

from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

from llip import storage
from llip.config import TrainingConfig
from llip.fields import override, value_of
from pipelines import command
from tune import clock, experiment, variants
from tune.clock import Clock
from tune.experiment import Experiment
from tune.found import FLOPS, STEPS, TIME, Settings, StudyFound
from tune.points import Point
from tune.variants import BASELINES, DEFAULT, TEMPERATURE, Variant

if TYPE_CHECKING:  # torch and Ray are imported once the options are right, so that --help and a refusal come at once
    from tune.results import Trial, TrialResult
    from tune.trials import TrialPlan

CHOICE_SEED = 1000
"""Settings are chosen on a seed that no reported trial has."""
RATE, SCALE, BIAS = "optimizer.learning_rate", "model.init_logit_scale", "model.init_logit_bias"
CHOSEN = (RATE, SCALE, BIAS, TEMPERATURE)
"""Settings that a variant chooses for itself, in this order."""
DECIDED = {
    RATE: "--learning-rate-factors say what it is chosen from",
    SCALE: "--logit-scales are what it is chosen from",
    BIAS: "--logit-biases are what it is chosen from",
    TEMPERATURE: "--temperatures are what it is chosen from",
    variants.LOSS: "every head is studied with both",
    "seed": "--seeds says how many each variant has",
    "evaluate_every": "a trial is evaluated at its end",
}
"""Settings that a study decides itself, with the option for it."""
EXTENDED = ("output", "name", "concurrency", "workers", "gpu", "seeds", "curve_seeds", "only", "ks", "head_counts")
"""Options that may change from one session to the next."""


@dataclass(frozen=True, kw_only=True)
class Study(Experiment):
    """Variants to compare, their data, and their length."""

    recipe: str = "llip_dense_mini_k8"
    """Configuration that every variant starts from, a recipe of Llip; its head and its loss are what is varied. The
    default is the smallest size, at which everything takes about five hours of two cores."""
    only: tuple[str, ...] = ()
    """Names of the variants that are trained, with * for any letters; all where not given."""
    ks: tuple[int, ...] = (1, 4, 8, 16)
    """Numbers of mixture tokens, at the recipe's heads."""
    head_counts: tuple[int, ...] = (1, 4, 8)
    """Numbers of heads, at the recipe's K."""
    seeds: int = 5
    curve_seeds: int = 3
    """Seeds of what varies K or heads, which is many models; no more than `seeds`."""
    learning_rate_factors: tuple[float, ...] = (0.5, 2.0)
    """Highest learning rates to choose from, as multiples of the recipe's own, which is among them."""
    logit_scales: tuple[float, ...] = (10.0, 1 / 0.07)
    """Initial scales to choose from, beside the recipe's own; so with the others."""
    logit_biases: tuple[float, ...] = (-10.0, -5.0)
    """Initial biases to choose from, for the sigmoid loss."""
    temperatures: tuple[float, ...] = (1.0, 5.0)
    """Temperatures of the mixing to choose from, where a query mixes."""
    choice_share: float = 1.0
    """Steps of a trial that chooses settings, as a share of `steps`. Shorter ones choose what is ahead early."""
    metric: str = "scenes_in_style/text_to_image_map_over_types"
    """Metric by which settings are chosen, and which is plotted."""
    name: str = "small_scale"
    """Name of the study."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.choice_share <= 1:
            raise ValueError(f"--choice-share is {self.choice_share}; it has to be in (0, 1]")
        if self.curve_seeds < 1:
            raise ValueError(f"--curve-seeds is {self.curve_seeds}; it has to be at least 1")

    @property
    def total_steps(self) -> int:
        return self.training().total_steps

    def variants(self) -> list[Variant]:
        """The trained variants, each once."""
        return variants.chosen(variants.variants(self.training().model, self.ks, self.head_counts), self.only)

    def config(self, variant: Variant, values: Settings, *, steps: int, seed: int) -> TrainingConfig:
        """A variant with settings of its own. Raises ValueError for a variant that the recipe cannot become."""
        config = self.training()
        given = variant.values(config.model) | values
        return override(config, given | {"steps": steps, "evaluate_every": steps, "seed": seed, "keep_checkpoints": 1})

    def candidates(self, variant: Variant) -> dict[str, list[Any]]:
        """Values that a variant chooses from, by path, the recipe's own first."""
        config = self.config(variant, {}, steps=1, seed=0)
        rates = [config.optimizer.learning_rate * factor for factor in self.learning_rate_factors]
        offered = zip(CHOSEN, (rates, self.logit_scales, self.logit_biases, self.temperatures), strict=True)
        unused = {BIAS} if variant.loss == "softmax" else set()
        unused |= set() if variant.queried else {TEMPERATURE}
        return {
            path: list(dict.fromkeys([value_of(config, path), *values]))
            for path, values in offered
            if path not in unused
        }


def check(settings: Study) -> None:
    """Raises ValueError for what cannot be studied, or is what the study finds."""
    if wrong := settings.fixed().keys() & DECIDED:
        raise ValueError(f"{min(wrong)} is given; leave it out: {DECIDED[min(wrong)]}")
    config = settings.training()
    if config.model.head.kind != "text_query":
        raise ValueError(f"--recipe {settings.recipe} is not one of Llip: its K and heads are what is studied")
    experiment.check_workers(settings.workers, config, settings.recipe)
    for variant in settings.variants():
        settings.config(variant, {}, steps=settings.total_steps, seed=0)


def study(settings: Study) -> str:
    """Run what is left of the study and report it; returns the table. Raises ValueError before any work."""
    from tune import study_report

    check(settings)
    heads = {settings.config(v, {}, steps=1, seed=0).model.head.kind for v in settings.variants()}
    plan = experiment.prepare(settings, settings.place("studies"), "study", experiment.kept(settings, EXTENDED), heads)
    rounds = Rounds(plan, settings)
    print(rounds.cost())
    rounds.choose()

    def made(seed: int) -> dict[str, bytes]:
        rounds.compare(seed)
        return study_report.files(rounds.found())

    names = (study_report.TABLE, study_report.FIGURE, study_report.PAGE)
    return experiment.seed_by_seed(plan, settings, settings.seeds, made, names)


@dataclass(frozen=True)
class Rounds:
    """The trials of a study: those that choose settings, and those that are compared."""

    plan: "TrialPlan"
    settings: Study
    choices: dict[Variant, Settings] = field(default_factory=dict)
    """Filled by `choose`."""
    compared: "dict[tuple[str, Variant], list[Trial]]" = field(default_factory=dict)
    results: "dict[str, TrialResult]" = field(default_factory=dict)

    @cached_property
    def clock(self) -> Clock:
        """Seconds and FLOPs of a step: of the baselines that are trained, and of the default, whose budget they get."""
        of = [DEFAULT, *(v for v in BASELINES if v in self.settings.variants())]
        return clock.measured(self.plan, {v.name: self._config(v, {}, self.settings.total_steps, 0) for v in of})

    @cached_property
    def flops(self) -> dict[str, float]:
        """FLOPs of a step of every variant, by name."""
        everything = [DEFAULT, *self.settings.variants(), *self._choosers()]
        return clock.flops_of(
            {v.name: self._config(v, {}, self.settings.total_steps, 0) for v in everything}, self.clock.caption_tokens
        )

    @cached_property
    def lengths(self) -> dict[tuple[str, Variant], int]:
        """Steps of every variant that is compared, by what is equal."""
        trained, total = self.settings.variants(), self.settings.total_steps
        found = {(STEPS, variant): total for variant in trained}
        if DEFAULT not in trained:
            return found
        costs = self.clock.costs
        for variant in (v for v in BASELINES if v in trained):
            found[FLOPS, variant] = round(total * self.flops[DEFAULT.name] / self.flops[variant.name])
            found[TIME, variant] = round(total * costs[DEFAULT.name].seconds / costs[variant.name].seconds)
        return found

    def cost(self) -> str:
        """Sentence on what is left to be trained."""
        from tune import results

        chosen = results.recorded(storage.join(self.plan.folder, "choice"))
        records = results.recorded(self.plan.trials_folder).items()
        done = {name for name, record in records if record["state"] == "finished"}
        left = list[tuple[float, int]]()
        for variant in self._choosers():
            planned = 1 + sum(len(values) - 1 for values in self.settings.candidates(variant).values())
            missing = planned - sum(name.startswith(f"{variant.name}@") for name in chosen)
            left += max(0, missing) * [(self._seconds(variant), self._choice_steps())]
        names = {
            f"{self._name(variant, steps)}-seed{seed}": (self._seconds(variant), steps)
            for (_, variant), steps in self.lengths.items()
            for seed in range(self._seeds(variant))
        }
        left += [cost for name, cost in names.items() if name not in done]
        return clock.told(left, self.settings.concurrency)

    def choose(self) -> None:
        """Choose the settings of every head with either loss, one after the other, each with what those before were
        found to be. Raises ValueError where no trial of one reached its end."""
        best: dict[Variant, Settings] = {variant: {} for variant in self._choosers()}
        for path in CHOSEN:
            grid = {
                variant: [best[variant] | {path: value} for value in values[path]]
                for variant in best
                if path in (values := self.settings.candidates(variant))
            }
            planned = {
                (variant, i): self._choice(variant, choice)
                for variant, choices in grid.items()
                for i, choice in enumerate(choices)
            }
            results = self._run("choice", list(planned.values()))
            for variant, choices in grid.items():
                reached = {
                    i: found.metrics.get(self.settings.metric)
                    for i in range(len(choices))
                    if (found := results[planned[variant, i].name]).finished
                }
                if not reached:
                    raise ValueError(f"no trial of {variant.name} reached its end; see the errors above")
                best[variant] = choices[max(reached, key=lambda i: reached[i] or 0.0)]
        self.choices.update(best)

    def compare(self, seed: int) -> None:
        """Train every variant on a seed, for each of its lengths, the longest first, so that no core waits for long."""
        seconds: dict[str, float] = {}
        new: dict[str, Trial] = {}
        for (axis, variant), steps in self.lengths.items():
            if seed < self._seeds(variant):
                config = self._config(variant, self.choices[variant.chooser], steps, seed)
                trial = self._trial(self._name(variant, steps), variant, config)
                self.compared.setdefault((axis, variant), []).append(trial)
                new[trial.name], seconds[trial.name] = trial, steps * self._seconds(variant)
        self.results.update(self._run("", sorted(new.values(), key=lambda trial: -seconds[trial.name])))

    def found(self) -> StudyFound:
        """Findings of the trials up to now."""
        of = {
            key: [self.results[t.name] for t in trials if self.results[t.name].finished]
            for key, trials in self.compared.items()
        }
        costs, trained = self.clock.costs, [DEFAULT, *self.settings.variants()]
        model = self.settings.training().model
        return StudyFound(
            metric=self.settings.metric,
            results={key: results for key, results in of.items() if results},
            tokens=model.vision.tokens,
            heads=model.head.heads,
            steps=self.lengths,
            choices=self.choices,
            flops={variant: self.flops[variant.name] for variant in trained},
            seconds={variant: costs[variant.name].seconds for variant in trained if variant.name in costs},
            unit=clock.unit(),
            folder={name: self.plan.trial_folder(name) for name in self.results},
        )

    def _choosers(self) -> list[Variant]:
        return list(dict.fromkeys(variant.chooser for variant in self.settings.variants()))

    def _seconds(self, variant: Variant) -> float:
        return self.clock.seconds(variant.name, self.flops[variant.name])

    def _seeds(self, variant: Variant) -> int:
        return min(self.settings.seeds, self.settings.curve_seeds) if variant.varies_counts else self.settings.seeds

    def _name(self, variant: Variant, steps: int) -> str:
        return variant.name if steps == self.settings.total_steps else f"{variant.name}-{steps}steps"

    def _choice_steps(self) -> int:
        return max(1, round(self.settings.total_steps * self.settings.choice_share))

    def _choice(self, variant: Variant, choice: Settings) -> "Trial":
        """A trial of settings, those that are not chosen yet as the recipe has them; its name tells them all."""
        config = self._config(variant, choice, self._choice_steps(), CHOICE_SEED)
        told = "-".join(command.brief(value_of(config, path)) for path in self.settings.candidates(variant))
        return self._trial(f"{variant.name}@{told}", variant, config)

    def _config(self, variant: Variant, values: Settings, steps: int, seed: int) -> TrainingConfig:
        return self.settings.config(variant, values, steps=steps, seed=seed)

    def _trial(self, name: str, variant: Variant, config: TrainingConfig) -> "Trial":
        from tune.results import Trial

        values = variant.values(self.settings.training().model)
        fields = {"variant": variant.name} | values
        point = Point(
            name=name, recipe=self.settings.recipe, values=tuple(values.items()), fields=tuple(fields.items())
        )
        return Trial(point=point, config=config)

    def _run(self, part: str, planned: "list[Trial]") -> "dict[str, TrialResult]":
        from tune import trials

        by_name = {trial.name: trial for trial in planned}
        folder = storage.join(self.plan.folder, part) if part else self.plan.folder
        return trials.run(replace(self.plan, trials=by_name, folder=folder))


def cli() -> None:
    """The command line."""
    command.run(Study, study, "Compare losses, heads, K and numbers of heads at small scale, over seeds.")


if __name__ == "__main__":
    cli()
