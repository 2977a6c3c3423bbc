"""What a study has so far, as its report and its figure take it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tune.variants import Variant

if TYPE_CHECKING:
    from tune.results import TrialResult

STEPS, FLOPS, TIME = "steps", "FLOPs", "time"
"""What is equal between the models that are compared."""

Settings = dict[str, Any]
"""What a variant has chosen, by path."""


@dataclass(frozen=True, kw_only=True)
class StudyFound:
    """What a study has so far."""

    metric: str
    results: "Mapping[tuple[str, Variant], Sequence[TrialResult]]"
    """Finished trials, one a seed, by what is equal and by variant; none of a variant that has no finished one."""
    tokens: int
    """K of the recipe."""
    heads: int
    """Heads of the recipe."""
    steps: Mapping[tuple[str, Variant], int]
    choices: Mapping[Variant, Settings]
    """By the variants that chose."""
    flops: Mapping[Variant, float]
    """FLOPs of a training step."""
    seconds: Mapping[Variant, float]
    """Seconds of a training step, for the models whose clock was read."""
    unit: str
    """What these seconds are."""
    folder: "Mapping[str, str]"
    """Run folder of every trial, by its name."""
