"""Scaling at small scale: models of several sizes for several lengths, laws of what they reach, and how well these
predict the largest and the longest.

    uv run tune/scaling.py                                           # the default recipe, three sizes, four lengths
    uv run tune/scaling.py --recipe clip_tiny --name scaling_clip

The recipe's towers, width of the embedding, heads and learning rate are replaced by those of each size
(`llip/recipes/sizes.py`), all else is the recipe's. Every length is a run of its own, with its own schedule. The report
is written after each seed; run again, it goes on where it was, and more seeds, sizes or lengths add what is missing.
"""

from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

from llip import recipes
from llip.config import QUERIED_HEADS, TrainingConfig
from llip.fields import override, value_of
from llip.recipes.sizes import SIZES
from pipelines import command
from tune import clock, experiment, laws
from tune.clock import Clock
from tune.experiment import Experiment
from tune.points import Point

if TYPE_CHECKING:
    from tune.results import Trial, TrialResult
    from tune.scaling_report import ScalingFound
    from tune.trials import TrialPlan

DECIDED = {
    "steps": "--lengths says for how long each size is trained",
    "epochs": "--lengths says for how long each size is trained",
    "seed": "--seeds says how many each size and length has",
    "evaluate_every": "a trial is evaluated at its end",
}
"""Settings that are decided here, with the option for it."""
TOWERS = (
    "model.embed_dim",
    *(f"model.vision.{field}" for field in ("width", "layers", "head_width", "mlp_width")),
    *(f"model.text.{field}" for field in ("width", "layers", "heads", "mlp_width")),
)
EXTENDED = ("output", "name", "concurrency", "workers", "gpu", "seeds", "sizes", "lengths")
"""Options that may change from one session to the next."""


@dataclass(frozen=True, kw_only=True)
class Scaling(Experiment):
    """Sizes to train, their data, and their lengths."""

    recipe: str = recipes.DEFAULT
    """Configuration that every size starts from: its head, loss and data."""
    sizes: tuple[str, ...] = ("mini", "tiny", "small")
    """Sizes of the towers, three or more: see `python -m llip.recipes`."""
    lengths: tuple[int, ...] = (300, 600, 1200, 2400)
    """Steps of the runs, four or more."""
    seeds: int = 2
    metric: str = "scenes_in_style/text_to_image_map_over_types"
    """Metric whose distance to 1 gets a law, beside the loss."""
    name: str = "scaling"
    """Name of the experiment."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if unknown := [size for size in self.sizes if size not in SIZES]:
            raise ValueError(f"--sizes {unknown[0]}: there are {', '.join(SIZES)}")
        for name, given, fewest in (("sizes", self.sizes, laws.FEWEST), ("lengths", self.lengths, laws.FEWEST + 1)):
            if len(set(given)) < fewest:
                raise ValueError(f"--{name} {' '.join(map(str, given))}: a law and what is left out need {fewest}")

    def config(self, size: str, *, steps: int, seed: int) -> TrainingConfig:
        """The recipe with the towers of a size. Raises ValueError for a recipe that has none of that size."""
        given = of_size(size, self.training()) | self.fixed()
        decided = {"steps": steps, "evaluate_every": steps, "seed": seed, "keep_checkpoints": 1}
        return override(self.training(), given | decided)


def of_size(name: str, config: TrainingConfig) -> dict[str, Any]:
    """Settings of a recipe that follow its size, by path: widths, depths, heads and learning rate."""
    size = SIZES[name]
    values = {path: value_of(size, path.removeprefix("model.")) for path in TOWERS}
    values["optimizer.learning_rate"] = size.learning_rate
    if config.model.head.kind in QUERIED_HEADS:
        values["model.head.heads"] = size.mixture_heads
    return values


def check(settings: Scaling) -> None:
    """Raises ValueError for what cannot be trained, or is varied anyway."""
    if wrong := settings.fixed().keys() & DECIDED:
        raise ValueError(f"{min(wrong)} is given; leave it out: {DECIDED[min(wrong)]}")
    for size in settings.sizes:
        for steps in settings.lengths:
            config = settings.config(size, steps=steps, seed=0)
            experiment.check_workers(settings.workers, config, settings.recipe)


def scaling(settings: Scaling) -> str:
    """Run what is left of it and report it; returns the table. Raises ValueError before any work."""
    from tune import scaling_report

    check(settings)
    heads = {settings.training().model.head.kind}
    plan = experiment.prepare(
        settings, settings.place("scaling"), "scaling", experiment.kept(settings, EXTENDED), heads
    )
    grid = Grid(plan, settings)
    print(grid.cost())

    def made(seed: int) -> dict[str, bytes]:
        grid.train(seed)
        return scaling_report.files(grid.found())

    names = (scaling_report.TABLE, scaling_report.FIGURE, scaling_report.PAGE)
    return experiment.seed_by_seed(plan, settings, settings.seeds, made, names)


@dataclass(frozen=True)
class Grid:
    """The trials of all sizes and lengths."""

    plan: "TrialPlan"
    settings: Scaling
    trials: "dict[tuple[str, int], list[Trial]]" = field(default_factory=dict)
    results: "dict[str, TrialResult]" = field(default_factory=dict)

    @cached_property
    def clock(self) -> Clock:
        """Seconds and FLOPs of a step of every size."""
        steps = max(self.settings.lengths)
        configs = {size: self.settings.config(size, steps=steps, seed=0) for size in self.settings.sizes}
        return clock.measured(self.plan, configs)

    def cost(self) -> str:
        """Sentence on what is left to be trained."""
        from tune import results

        records = results.recorded(self.plan.trials_folder).items()
        done = {name for name, record in records if record["state"] == "finished"}
        left = [
            (self.clock.costs[size].seconds, steps)
            for size in self.settings.sizes
            for steps in self.settings.lengths
            for seed in range(self.settings.seeds)
            if self._trial(size, steps, seed).name not in done
        ]
        return clock.told(left, self.settings.concurrency)

    def train(self, seed: int) -> None:
        """Train every size for every length on a seed, the longest first, so that no core waits for long."""
        from tune import trials

        new: dict[str, Trial] = {}
        costs = {size: cost.seconds for size, cost in self.clock.costs.items()}
        cells = [(size, steps) for size in self.settings.sizes for steps in self.settings.lengths]
        for size, steps in sorted(cells, key=lambda cell: -costs[cell[0]] * cell[1]):
            trial = self._trial(size, steps, seed)
            self.trials.setdefault((size, steps), []).append(trial)
            new[trial.name] = trial
        self.results.update(trials.run(replace(self.plan, trials=new)))

    def found(self) -> "ScalingFound":
        """Findings of the trials up to now."""
        from tune.scaling_report import Cell, ScalingFound

        cells = []
        for size in self.settings.sizes:
            for steps in sorted(self.settings.lengths):
                results = [self.results[trial.name] for trial in self.trials[size, steps]]
                finished = [result for result in results if result.finished]
                if finished:
                    losses = [self._loss(result.name, steps) for result in finished]
                    flops = self.clock.flops[size]
                    cells.append(Cell(size=size, steps=steps, flops=flops, results=finished, losses=losses))
        folders = {name: self.plan.trial_folder(name) for name in self.results}
        return ScalingFound(metric=self.settings.metric, cells=cells, folders=folders)

    def _loss(self, name: str, steps: int) -> float:
        """The mean of the losses that a trial logged in the last tenth of its steps."""
        from llip.runs.tracking import read_metrics

        lines = read_metrics(self.plan.trial_folder(name))
        last = [line["loss"] for line in lines if "loss" in line and line["step"] > 0.9 * steps]
        return sum(last) / len(last)

    def _trial(self, size: str, steps: int, seed: int) -> "Trial":
        from tune.results import Trial

        values = of_size(size, self.settings.training()) | {"steps": steps}
        fields = {"size": size, "steps": steps}
        point = Point(
            name=f"{size}-{steps}steps", recipe=self.settings.recipe,
            values=tuple(values.items()), fields=tuple(fields.items()),
        )  # fmt: skip
        return Trial(point=point, config=self.settings.config(size, steps=steps, seed=seed))


def cli() -> None:
    """The command line."""
    command.run(Scaling, scaling, "Train several sizes for several lengths, and fit laws of what they reach.")


if __name__ == "__main__":
    cli()
