"""The space of a sweep: objectives and, for those that mix, the product of K and head counts that a model can have."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from llip.config import TrainingConfig
from llip.fields import override
from llip.recipes import recipe

Objective = Literal["clip", "siglip", "llip", "register", "mean", "learned_query"]


@dataclass(frozen=True, kw_only=True)
class Point:
    """One model of the space."""

    objective: Objective
    k: int | None = None
    """Image tokens; None for an objective with one class token."""
    heads: int | None = None
    """Heads of the mixture; None for an objective without a query."""

    def __str__(self) -> str:
        parts = {"k": self.k, "m": self.heads}
        return "-".join([self.objective, *(f"{name}{n}" for name, n in parts.items() if n is not None)])


@dataclass(frozen=True, kw_only=True)
class Space:
    """What a sweep compares."""

    objectives: tuple[Objective, ...]
    k: tuple[int, ...]
    heads: tuple[int, ...]

    def __post_init__(self) -> None:
        for name, values in (("objectives", self.objectives), ("k", self.k), ("heads", self.heads)):
            if not values:
                raise ValueError(f"{name} is empty; it has to name at least one value")
            if repeated := sorted({str(v) for v in values if values.count(v) > 1}):
                raise ValueError(f"{name} names {', '.join(repeated)} more than once")

    def points(self) -> list[Point]:
        """Every combination once: CLIP and SigLIP have no K and no heads, registers and the uniform mean no heads."""
        points = []
        for objective in self.objectives:
            single, queried = objective in ("clip", "siglip"), objective in ("llip", "learned_query")
            ks, counts = (None,) if single else self.k, self.heads if queried else (None,)
            points += [Point(objective=objective, k=k, heads=m) for m in counts for k in ks]
        return points


def possible(
    points: Sequence[Point], configure: Callable[[Point], TrainingConfig]
) -> tuple[dict[Point, TrainingConfig], dict[Point, str]]:
    """The configuration of every point that has one, and the reason of every point that has none.

    `configure` raises ValueError for what contradicts itself, such as a head count that does not divide the width.
    """
    configurations, reasons = {}, {}
    for point in points:
        try:
            configurations[point] = configure(point)
        except ValueError as error:
            reasons[point] = str(error)
    return configurations, reasons


def configured(base: str, point: Point, values: Mapping[str, Any]) -> TrainingConfig:
    """The configuration of a point on the towers of the Llip recipe `base`, with some values of its own."""
    single = point.objective in ("clip", "siglip")
    name = base.rpartition("_k")[0] if single else base
    varied = {"k": point.k, "heads": point.heads} | dict(values)
    return override(
        recipe(name.replace("llip", point.objective, 1)), {k: v for k, v in varied.items() if v is not None}
    )
