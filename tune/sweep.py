"""Sweep any settings with Ray Tune: over values, at random, or by Optuna.

    uv run tune/sweep.py                                             # K x heads of Llip on the built-in corpus
    uv run tune/sweep.py --name objectives --vary recipe=clip_tiny,siglip_tiny,llip_tiny_k8 k=1,4,16 heads=1,4 --seeds 3
    uv run tune/sweep.py --name rates --search optuna --trials 30 --scheduler asha \\
        --vary optimizer.learning_rate=loguniform:1e-4:3e-3 temperature=1,5,10 k=1,4,16
    python tune/sweep.py --recipe llip_b32_k32 --vary k=32,64,128 heads=1,8,16 --steps 20000 --workers 8 \\
        --shards s3://bucket/shards --evaluation s3://bucket/evaluation --metric imagenet/top1 --output s3://bucket/work

What is not varied is an option, as for pretrain.py. Run again, it goes on where it was; with more values, seeds or
trials it adds what is missing.
"""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal

from llip import storage
from llip.config import TrainingConfig
from llip.fields import find_leaf
from pipelines import command
from tune import axes, experiment, points
from tune.axes import RECIPE, Axis, Chosen
from tune.experiment import Experiment
from tune.points import Point, Selection, Space

if TYPE_CHECKING:  # torch and Ray are imported once the options are right, so that --help and a refusal come at once
    from tune.report import Summary
    from tune.results import Trial, TrialResult
    from tune.search import Suggestions
    from tune.trials import TrialPlan

STEPS = {"steps": 600}
"""Long enough that small models leave chance far behind on the built-in corpus."""
LOOKED_AT = 16
"""Points by which it is found what kinds of models Optuna may ask for."""


@dataclass(frozen=True, kw_only=True)
class Sweep(Experiment):
    """Axes to vary, the data, and the length of a trial."""

    recipe: str = "llip_dense_mini_k8"
    """Configuration that every trial starts from, where recipes are not varied: see pretrain.py."""
    vary: tuple[str, ...] = ("k=1,8", "heads=1,4")
    """Settings and their values: setting=value,value (a tuple's numbers with / between them), or
    setting=uniform:low:high, loguniform:low:high, randint:low:high; or recipe=name,name. A setting goes by its dotted
    path or short spelling. A setting that a recipe has no use for, such as heads for CLIP, is not varied for it."""
    search: Literal["grid", "random", "optuna"] = "grid"
    """grid: every combination. random: points drawn alike whatever their number. optuna: chosen by what others reached
    (TPE), the mean over the seeds."""
    trials: int | None = None
    """Points of a random search or of Optuna; for a grid, draws from its distributions."""
    seeds: int = 2
    scheduler: Literal["asha", "hyperband", "none"] = "none"
    """Whether trials stop early: asha, once, the worse half at half of the run; hyperband, fewer and later. Never
    before, nor where the metric is still at chance."""
    evaluations: int = 4
    """Evaluations of a trial, evenly spread; at each the scheduler decides, and a checkpoint is saved."""
    metric: str = "scenes_in_style/text_to_image_map"
    name: str = "k_heads"
    overrides: Mapping[str, Any] = field(default_factory=STEPS.copy)

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("trials", "evaluations"):
            if (value := getattr(self, name)) is not None and value < 1:
                raise ValueError(f"--{name} is {value}; it has to be at least 1")
        if self.scheduler != "none" and self.evaluations < 2:
            raise ValueError(
                f"--evaluations 1 leaves {self.scheduler} nothing to decide; take 2 or more, or --scheduler none"
            )
        drawn = any(axis.distribution for axis in self.axes())
        if self.search != "grid" and self.trials is None:
            raise ValueError(f"--search {self.search} needs --trials, the number of its points")
        if self.search == "grid" and drawn != (self.trials is not None):
            raise ValueError(
                "a grid takes every value: a distribution needs --trials, or --search random or optuna"
                if drawn
                else "--trials is for distributions, of which this grid has none; it trains every combination"
            )

    def axes(self) -> tuple[Axis, ...]:
        """Axes and fixed values of the sweep. Raises ValueError for what cannot be."""
        given = {path for path, value in self.fixed().items() if STEPS.get(path) != value}
        return axes.parse_all(self.vary, given)

    def space(self) -> Space:
        """Axes over the recipe with what is fixed. A default length gives way to a varied one."""
        varied = {axis.path for axis in self.axes()}
        replaced = varied.union(*(find_leaf(TrainingConfig, path).excludes for path in varied - {RECIPE}))
        default = {path for path, value in self.fixed().items() if STEPS.get(path) == value}
        fixed = {path: value for path, value in self.fixed().items() if path not in default & replaced}
        return Space(self.axes(), self.recipe, fixed)


def sweep(settings: Sweep) -> "list[Summary]":
    """Run what is left of the sweep and report it: a table, figures, and the command that trains the best point.

    Raises ValueError, before any work, where no point is possible, and for a folder that holds another sweep.
    """
    if "evaluate_every" in settings.fixed():
        raise ValueError(f"evaluate_every is given; leave it out: {axes.ELSEWHERE['evaluate_every']}")
    space, folder = settings.space(), settings.place("sweeps")
    selection = select(settings, space, folder)
    for note in selection.notes:
        print(note)
    for point, config in selection.points.values():
        experiment.check_workers(settings.workers, config, point.recipe)
        if config.steps is not None and settings.evaluations > config.steps:
            raise ValueError(f"--evaluations {settings.evaluations} is above --steps {config.steps}")
    heads = {config.model.head.kind for _, config in selection.points.values()}
    plan = experiment.prepare(settings, folder, "sweep", _fixed(settings, space), heads)
    return run(settings, space, selection, replace(plan, scheduler=settings.scheduler))


def select(settings: Sweep, space: Space, folder: str) -> Selection:
    """The points that are known ahead. Optuna has those of its folder, and some that show what it may ask for."""
    from tune import results

    known = results.recorded(storage.join(folder, "trials"))
    names = {record["name"] for record in known.values()}
    if settings.search == "grid":
        return points.select(space, axes.grid(space.axes, settings.trials), recorded=names)
    drawn = axes.drawn(space.axes)
    if settings.search == "random":
        return points.select(space, drawn, most=settings.trials, recorded=names)
    asked = [axes.restored(space.axes, record["asked"]) for record in known.values()]
    chosen = [values for values in asked if values is not None]
    return points.select(space, itertools.chain(chosen, drawn), most=len(chosen) + LOOKED_AT, recorded=names)


def _fixed(settings: Sweep, space: Space) -> dict[str, Any]:
    """Settings that all trials of a sweep share, whatever is added to it later."""
    varied = {axis.path for axis in space.axes}
    learned = {p: v for p, v in space.fixed.items() if p != "seed" and not find_leaf(TrainingConfig, p).operational}
    places = {name: getattr(settings, name) for name in experiment.PLACES}
    recipe = {} if RECIPE in varied else {"recipe": settings.recipe}
    return recipe | {"overrides": learned, "metric": settings.metric} | places


def run(settings: Sweep, space: Space, selection: Selection, plan: "TrialPlan") -> "list[Summary]":
    """Run the trials of a plan that has none yet, and report them."""
    from tune import results, trials

    configs: dict[str, TrainingConfig] = {}

    def of_point(point: Point, config: TrainingConfig, asked: Chosen) -> "list[Trial]":
        configs[point.name] = config
        return trials_of(settings, plan, point, config, asked)

    planned: dict[str, Trial] = {}
    optuna = settings.search == "optuna"
    recorded = {record["name"] for record in results.recorded(plan.trials_folder).values()}
    for name, (point, config) in selection.points.items():
        if not optuna or name in recorded:
            planned |= {trial.name: trial for trial in of_point(point, config, selection.asked[name])}
    plan = replace(plan, trials=planned)
    suggestions = _suggestions(settings, space, plan, of_point) if optuna else None
    return report(settings, space, plan, trials.run(plan, suggestions), configs, selection.notes)


def _suggestions(settings: Sweep, space: Space, plan: "TrialPlan", of_point: Any) -> "Suggestions | None":
    """Optuna, which knows what is recorded; None where it has all of its points."""
    from tune import results
    from tune.search import Suggestions

    assert settings.trials is not None
    known = [results.read(plan.trial_folder(name), trial) for name, trial in plan.trials.items()]
    if all(result.ended for result in known) and len({r.point for r in known}) >= settings.trials:
        return None
    return Suggestions(
        space, most=settings.trials, seeds=settings.seeds, metric=settings.metric, trials=of_point, known=known
    )


def trials_of(
    settings: Sweep, plan: "TrialPlan", point: Point, config: TrainingConfig, asked: Mapping[str, Any]
) -> "list[Trial]":
    """The trials of a point, one a seed, with as many evaluations and checkpoints as the sweep has."""
    from llip.runs.run_folder import for_shards
    from tune.results import Trial

    config = for_shards(config, plan.shards) if config.epochs is not None else config
    every = max(1, config.total_steps // settings.evaluations)
    saved = config.checkpoint_every if "checkpoint_every" in settings.fixed() else every
    config = replace(config, evaluate_every=every, checkpoint_every=saved)
    return [
        Trial(point=point, config=replace(config, seed=config.seed + n), asked=asked) for n in range(settings.seeds)
    ]


def report(
    settings: Sweep,
    space: Space,
    plan: "TrialPlan",
    results: "Mapping[str, TrialResult]",
    configs: Mapping[str, TrainingConfig],
    notes: Sequence[str],
) -> "list[Summary]":
    """Write, print and log what the sweep found."""
    from llip.runs.notebook import published
    from tune import figures
    from tune import report as tables

    summaries = tables.summarise(list(results.values()), settings.metric)
    if not summaries:
        raise ValueError("no trial reached its first evaluation; see the errors above")
    failed = [f"{name} failed: {result.error}" for name, result in results.items() if result.state == "failed"]
    storage.write_json(storage.join(plan.folder, "results.json"), [r.written() for r in results.values()])
    table = tables.table(summaries, settings.metric, space.axes)
    best = tables.best(summaries)
    train = best_command(settings, space, best.point)
    parts = tables.parts_table(summaries)
    shown = [table, "", *([parts, ""] if parts else []), tables.verdict(summaries)]
    text = "\n".join([*shown, *notes, *failed, "", train, ""])
    plots = figures.figures(summaries, settings.metric, space.axes, configs)
    page = tables.page(
        f"Sweep {settings.name}",
        summaries,
        settings.metric,
        space.axes,
        command=train,
        notes=[*notes, *failed],
        plots=plots,
    )
    files = plots | {"sweep.txt": text.encode(), "sweep.html": page.encode()}
    experiment.write(plan.folder, files)
    everything = files | {"results.json": storage.read_bytes(storage.join(plan.folder, "results.json"))}
    _end_stopped(plan, results)
    note = tables.markdown(summaries, settings.metric, space.axes, train)
    experiment.log_report(plan, settings, everything, {published(settings.metric): best.mean}, note)
    print(f"\n{table}\n\n{tables.verdict(summaries)}")
    print(f"figures      {', '.join(storage.join(plan.folder, name) for name in files if name.endswith('.png'))}")
    print(f"report       {storage.join(plan.folder, 'sweep.html')}")
    print(f"best         {train}")
    return summaries


def _end_stopped(plan: "TrialPlan", results: "Mapping[str, TrialResult]") -> None:
    """End the MLflow runs of trials that the scheduler stopped before they could send their last numbers."""
    from llip.runs.notebook import with_headlines
    from llip.runs.tracking import open_run

    try:
        for name, result in results.items():
            if result.state != "stopped":
                continue
            tracking = replace(plan.tracking, run_name=name, parent_run_id=plan.parent_run_id)
            client, run_id = open_run(tracking, plan.trial_folder(name))
            for metric, value in with_headlines(result.metrics).items():
                client.log_metric(run_id, metric, value, step=result.evaluations[-1].step)
            client.set_terminated(run_id, "KILLED")
    except Exception as error:  # results.json has their numbers
        print(f"MLflow does not answer ({str(error).splitlines()[0]}): stopped trials were not ended in it")


def best_command(settings: Sweep, space: Space, point: Point) -> str:
    """The command that trains one point on its own."""
    values = {**space.fixed, **dict(point.values)}
    places = {name: getattr(settings, name) for name in (*experiment.PLACES, "output")}
    given = {name: value for name, value in places.items() if value is not None}
    return command.written("uv run pipelines/pretrain.py", {RECIPE: point.recipe} | values | given)


def cli() -> None:
    """The command line."""
    command.run(Sweep, sweep, "Sweep any settings: over values, at random, or by Optuna.")


if __name__ == "__main__":
    cli()
