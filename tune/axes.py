"""Axes of a sweep: what is varied, and the values that it takes.

model.vision.tokens=1,4,16                       values, each as the field takes it; `k` is the same field
data.crop_scale=0.5/1.0,0.9/1.0                  a tuple is written with / between its numbers
optimizer.learning_rate=loguniform:1e-4:3e-3     uniform:low:high, loguniform:low:high, randint:low:high (ends too)
recipe=clip_tiny,siglip_tiny,llip_tiny_k8        recipes
"""

import itertools
import math
import random
import re
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, cast

from llip.config import TrainingConfig
from llip.fields import convert, find_leaf, leaves

RECIPE = "recipe"
ELSEWHERE = {
    "seed": "--seeds says how many each point has",
    "evaluate_every": "--evaluations says how many each trial has",
}
"""Settings that a sweep decides itself, with the option for it."""
WRITTEN = "uniform:low:high, loguniform:low:high or randint:low:high"
DIGITS = 4
"""Significant digits of a drawn number, so that names and tables show it whole."""


@dataclass(frozen=True, kw_only=True)
class Distribution:
    """Numbers between two ends, both included."""

    kind: Literal["uniform", "loguniform", "randint"]
    low: float
    high: float

    def draw(self, generator: random.Random) -> float | int:
        """A number; of few digits, where it is no whole one."""
        if self.kind == "randint":
            return generator.randint(int(self.low), int(self.high))
        if self.kind == "uniform":
            return self.rounded(generator.uniform(self.low, self.high))
        return self.rounded(math.exp(generator.uniform(math.log(self.low), math.log(self.high))))

    def rounded(self, value: float) -> float | int:
        """The number as it is trained with."""
        if self.kind == "randint":
            return round(value)
        return min(self.high, max(self.low, float(f"{value:.{DIGITS}g}")))


@dataclass(frozen=True, kw_only=True)
class Axis:
    """A setting that is varied: over values, or over a distribution."""

    path: str
    """Dotted path, or `recipe`."""
    values: tuple[Any, ...] = ()
    distribution: Distribution | None = None

    @property
    def label(self) -> str:
        return spelling(self.path)

    def draw(self, index: int) -> Any:
        """The value of a random search's point `index`: whatever else is varied, and however many points there are."""
        generator = random.Random(f"{self.path} {index}")
        return self.distribution.draw(generator) if self.distribution else generator.choice(self.values)

    def examples(self) -> tuple[Any, ...]:
        """Values that stand for all."""
        if self.distribution is None:
            return self.values
        ends = (self.distribution.low, self.distribution.high)
        return tuple(map(int, ends)) if self.distribution.kind == "randint" else ends


def spelling(path: str) -> str:
    """The short spelling of a setting, else the end of its path that no other setting has."""
    if path == RECIPE:
        return path
    if short := find_leaf(TrainingConfig, path).short:
        return short
    parts, paths = path.split("."), [leaf.path for leaf in leaves(TrainingConfig)]
    ends = (".".join(parts[-count:]) for count in range(1, len(parts) + 1))
    return next(end for end in ends if sum(f".{other}".endswith(f".{end}") for other in paths) == 1)


def parse(text: str) -> Axis:
    """An axis as it is written on a command line. Raises ValueError for one that cannot be read."""
    name, equals, written = text.partition("=")
    if not equals:
        raise ValueError(f"--vary {text}: write setting=value,value or setting=loguniform:low:high")
    if name == RECIPE:
        return Axis(path=RECIPE, values=_distinct(text, written.split(",")))
    leaf = find_leaf(TrainingConfig, name)
    if leaf.path in ELSEWHERE:
        raise ValueError(f"--vary {text}: {ELSEWHERE[leaf.path]}")
    if re.match(r"[a-z_]+:", written) and "str" not in str(leaf.hint):
        return Axis(path=leaf.path, distribution=_distribution(text, written, leaf.hint))
    values = [convert(leaf.hint, value, leaf.path) for value in written.split(",")] if written else [""]
    return Axis(path=leaf.path, values=_distinct(text, values))


def _distinct(text: str, values: Sequence[Any]) -> tuple[Any, ...]:
    if "" in values:
        raise ValueError(f"--vary {text}: a value is missing")
    if repeated := [value for value in dict.fromkeys(values) if values.count(value) > 1]:
        raise ValueError(f"--vary {text}: {repeated[0]} is there more than once")
    return tuple(values)


def _distribution(text: str, written: str, hint: Any) -> Distribution:
    kind, *ends = written.split(":")
    try:
        low, high = map(float, ends)
        if kind not in ("uniform", "loguniform", "randint"):
            raise ValueError
    except ValueError:
        raise ValueError(f"--vary {text}: write {WRITTEN}") from None
    whole = kind == "randint"
    if ("int" if whole else "float") not in str(hint):
        right = f"randint:{ends[0]}:{ends[1]}" if "int" in str(hint) else "a list of values"
        raise ValueError(f"--vary {text}: the setting does not take what {kind} gives; write {right}")
    if whole and not (low.is_integer() and high.is_integer()):
        raise ValueError(f"--vary {text}: the ends have to be whole numbers")
    if not (math.isfinite(low) and math.isfinite(high) and low < high):
        raise ValueError(f"--vary {text}: the range is empty; the first number has to be the lower one")
    if kind == "loguniform" and low <= 0:
        raise ValueError(f"--vary {text}: the lower end has to be above 0")
    return Distribution(kind=cast(Any, kind), low=low, high=high)


def parse_all(vary: Sequence[str], fixed: Collection[str]) -> tuple[Axis, ...]:
    """Axes of which each varies another setting, none of them `fixed`, in the order of the configuration's fields."""
    axes = [parse(text) for text in vary]
    if not axes:
        raise ValueError("--vary names nothing; write setting=value,value")
    paths = [axis.path for axis in axes]
    for path in paths:
        if paths.count(path) > 1:
            raise ValueError(f"--vary names {path} more than once")
        if path in fixed:
            raise ValueError(f"{path} is varied and given as an option; leave one out")
    order = [RECIPE, *(leaf.path for leaf in leaves(TrainingConfig))]
    return tuple(sorted(axes, key=lambda axis: order.index(axis.path)))


Chosen = dict[str, Any]
"""A value for each axis, by path."""


def grid(axes: Sequence[Axis], draws: int | None) -> Iterator[Chosen]:
    """Every combination of the values; those of distributions are drawn together, `draws` times."""
    listed = [axis for axis in axes if axis.distribution is None]
    others = [axis for axis in axes if axis.distribution is not None]
    for values in itertools.product(*(axis.values for axis in listed)):
        for index in range(draws or 1):
            found = dict(zip((axis.path for axis in listed), values, strict=True))
            found |= {axis.path: axis.draw(index) for axis in others}
            yield {axis.path: found[axis.path] for axis in axes}


def drawn(axes: Sequence[Axis]) -> Iterator[Chosen]:
    """Points of a random search, without end: always the same ones."""
    for index in itertools.count():
        yield {axis.path: axis.draw(index) for axis in axes}


def restored(axes: Sequence[Axis], asked: dict[str, Any]) -> Chosen | None:
    """Chosen values of a point, from its record; None where other axes are varied now."""
    if set(asked) != {axis.path for axis in axes}:
        return None
    hints = {leaf.path: leaf.hint for leaf in leaves(TrainingConfig)}
    return {
        axis.path: asked[axis.path] if axis.path == RECIPE else convert(hints[axis.path], asked[axis.path], axis.path)
        for axis in axes
    }
