"""Findings of a study so far, as its report and its figure take them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tune.variants import Variant

if TYPE_CHECKING:
    from tune.results import TrialResult

STEPS, FLOPS, TIME = "steps", "FLOPs", "time"
"""Budgets that the compared models have in common."""

Settings = dict[str, Any]
"""Chosen values of a variant, by path."""


@dataclass(frozen=True, kw_only=True)
class StudyFound:
    """Findings of a study so far."""

    metric: str
    results: "Mapping[tuple[str, Variant], Sequence[TrialResult]]"
    """Finished trials, one a seed, by what is equal and by variant; none of a variant that has no finished one."""
    tokens: int
    """K of the recipe."""
    heads: int
    """Heads of the recipe."""
    steps: Mapping[tuple[str, Variant], int]
    choices: Mapping[Variant, Settings]
    """Chosen settings of each variant that chose."""
    flops: Mapping[Variant, float]
    """FLOPs of a training step."""
    seconds: Mapping[Variant, float]
    """Seconds of a training step, for the models whose clock was read."""
    unit: str
    """Kind of these seconds: of the CPU, or of a clock."""
    folder: "Mapping[str, str]"
    """Run folder of every trial, by its name."""
