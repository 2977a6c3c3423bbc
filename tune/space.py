"""The space of a sweep: objectives and, for Llip, the product of K and head counts, less what no model can have."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from llip.config import TrainingConfig

Objective = Literal["clip", "siglip", "llip"]


@dataclass(frozen=True, kw_only=True)
class Point:
    """One model of the space."""

    objective: Objective
    k: int = 1
    """Mixture tokens; 1 for an objective that mixes nothing."""
    heads: int | None = None
    """Heads of the mixture; None for an objective that mixes nothing."""

    def __str__(self) -> str:
        return self.objective if self.heads is None else f"{self.objective}-k{self.k}-m{self.heads}"


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
        """Every combination once: CLIP and SigLIP have no K and no heads."""
        mixed = [Point(objective="llip", k=k, heads=m) for m in self.heads for k in self.k]
        return [p for o in self.objectives for p in (mixed if o == "llip" else [Point(objective=o)])]


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
