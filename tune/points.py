"""Points of a sweep: values of its axes as configurations, each model once, and why others are left out."""

import itertools
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from llip import recipes
from llip.config import QUERIED_HEADS, TrainingConfig
from llip.fields import NONE, override, value_of
from pipelines.command import brief, brief_recipe
from tune.axes import RECIPE, Axis, Chosen, spelling

COMBINATIONS = 4096
"""Most combinations that are tried to find whether a recipe has a use for an axis."""
ATTEMPTS = 20
"""Draws for each point of a random search after which its space counts as exhausted."""
MIXING = ("model.head.heads", "model.head.temperature", "model.head.relative_temperature")
"""Settings of the mixture, of no effect where it is of a single token."""
BIAS = "model.init_logit_bias"
"""The setting that the softmax loss leaves without effect."""


@dataclass(frozen=True, kw_only=True)
class Point:
    """One model of a sweep or a study."""

    name: str
    recipe: str
    values: tuple[tuple[str, Any], ...] = ()
    """Values that differ from the recipe's, by path."""
    fields: tuple[tuple[str, Any], ...] = ()
    """The varied settings that mean something to this model, by path; `recipe` where it is varied."""

    def __str__(self) -> str:
        return self.name

    def field(self, path: str) -> Any:
        """The value of a varied setting; None where it means nothing to this model."""
        of = dict(self.fields)
        return NONE if path in of and of[path] is None else of.get(path)


def named(recipe: str, values: Mapping[str, Any]) -> str:
    """A recipe and what differs from it, in short spellings."""
    return "-".join([brief_recipe(recipe), *(f"{spelling(path)}{brief(value)}" for path, value in values.items())])


@dataclass(frozen=True)
class Space:
    """Space of points: axes over a recipe with some values fixed."""

    axes: Sequence[Axis]
    recipe: str
    """Recipe of all points where it is not varied."""
    fixed: Mapping[str, Any]
    """Values in all points, by path."""
    _uses: dict[str, set[str]] = field(default_factory=dict)

    def point(self, chosen: Chosen) -> tuple[Point, TrainingConfig]:
        """The model of some values. Raises ValueError where they contradict each other.

        Values that the recipe has anyway, or that mean nothing to the model, are no part of its name: so it stays the
        same whatever else is varied later.
        """
        recipe = chosen.get(RECIPE, self.recipe)
        used = {p: v for p, v in chosen.items() if p in self.used(recipe)}
        config = self._configured(recipe, used)
        single = config.model.head.kind in QUERIED_HEADS and config.model.mixture_tokens == 1
        ignored = (*(MIXING if single else ()), *([BIAS] if config.objective.loss == "softmax" else ()))
        if ignored:
            used = {p: v for p, v in used.items() if p not in ignored}
            config = self._configured(recipe, used)
        base = self._base(recipe)
        values = {p: v for p, v in used.items() if value_of(base, p) != v}
        fields = ({RECIPE: recipe} if RECIPE in chosen else {}) | used
        return Point(
            name=named(recipe, values), recipe=recipe, values=tuple(values.items()), fields=tuple(fields.items())
        ), config

    def _configured(self, recipe: str, values: Mapping[str, Any]) -> TrainingConfig:
        return override(recipes.load(recipe), {**self.fixed, **values})

    def _base(self, recipe: str) -> TrainingConfig:
        """The configuration that the values of a point are compared with."""
        try:
            return self._configured(recipe, {})
        except ValueError:  # what is fixed needs a value of an axis
            return recipes.load(recipe)

    def used(self, recipe: str) -> set[str]:
        """Paths of the axes that this recipe has a use for. An axis that no recipe has a use for counts as used by all,
        so that its values are refused one by one."""
        paths = {axis.path for axis in self.axes if axis.path != RECIPE}
        useless = paths.difference(*(self._taken(name) for name in self.recipes))
        return paths & self._taken(recipe) | useless

    @property
    def recipes(self) -> Sequence[str]:
        return next((axis.values for axis in self.axes if axis.path == RECIPE), (self.recipe,))

    def _taken(self, recipe: str) -> set[str]:
        """Paths of the axes on which the recipe takes another value than its own, alone or beside other changes."""
        if recipe not in self._uses:
            axes = [axis for axis in self.axes if axis.path != RECIPE]
            base, found = self._base(recipe), set[str]()
            choices = [[(a.path, None, False), *((a.path, v, True) for v in a.examples())] for a in axes]
            for combination in itertools.islice(itertools.product(*choices), COMBINATIONS):
                values = {path: value for path, value, given in combination if given}
                new = {path for path, value in values.items() if value_of(base, path) != value}
                if new <= found:
                    continue
                try:
                    self._configured(recipe, values)
                except ValueError:
                    continue
                found |= new
            self._uses[recipe] = found
        return self._uses[recipe]

    def unused(self) -> list[str]:
        """One line for each recipe that some axes mean nothing to."""
        lines = []
        for recipe in self.recipes:
            if others := [a.label for a in self.axes if a.path != RECIPE and a.path not in self.used(recipe)]:
                lines.append(f"not varied for {recipe}, which takes no other value: {', '.join(others)}")
        return lines


@dataclass(frozen=True, kw_only=True)
class Selection:
    """The points of a sweep, and what is said of those that it leaves out."""

    points: dict[str, tuple[Point, TrainingConfig]]
    asked: dict[str, Chosen]
    """Chosen values of each point, by its name."""
    notes: list[str]


def select(
    space: Space, candidates: Iterable[Chosen], *, most: int | None = None, recorded: Collection[str] = ()
) -> Selection:
    """The distinct models among the candidates, `most` of them. Raises ValueError where there is none.

    One point stands for equal models: the `recorded` one, else the first.
    """
    groups: list[list[tuple[Point, TrainingConfig, Chosen]]] = []
    of_config: dict[TrainingConfig, int] = {}
    reasons: dict[str, list[str]] = defaultdict(list)
    for tried, chosen in enumerate(candidates):
        if most is not None and (len(groups) == most or tried == ATTEMPTS * most):
            break
        try:
            point, config = space.point(chosen)
        except ValueError as error:
            reasons[str(error)].append(_asked(space, chosen))
            continue
        if config not in of_config:
            of_config[config] = len(groups)
            groups.append([])
        groups[of_config[config]].append((point, config, chosen))
    notes = space.unused()
    for reason, names in reasons.items():
        notes.append(f"left out {_several(list(dict.fromkeys(names)))}: {reason}")
    points, asked = {}, {}
    for group in groups:
        point, config, chosen = next((member for member in group if member[0].name in recorded), group[0])
        points[point.name], asked[point.name] = (point, config), chosen
        same = list(dict.fromkeys(_asked(space, other) for *_, other in group))
        if len(same) > 1 and most is None:
            notes.append(f"one model, trained once as {point.name}: {_several(same)}")
    if not points:
        raise ValueError("no point of the sweep is possible: " + "; ".join(notes))
    return Selection(points=points, asked=asked, notes=notes)


def _asked(space: Space, chosen: Chosen) -> str:
    """All that was chosen for a point which means something to its recipe."""
    recipe = chosen.get(RECIPE, space.recipe)
    return named(recipe, {p: v for p, v in chosen.items() if p != RECIPE and p in space.used(recipe)})


def _several(names: Sequence[str]) -> str:
    return ", ".join(names) if len(names) <= 4 else f"{', '.join(names[:3])} and {len(names) - 3} more"
