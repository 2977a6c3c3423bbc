"""Results of trials, and the record in each trial's folder, from which a sweep goes on."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal, cast

from llip import storage
from llip.config import TrainingConfig
from tune.points import Point

RECORD = "trial.json"
MARGIN = 0.25
"""Distance from chance at which a metric has left it, as a share of the chance level c or of 1 - c, the lesser."""


@dataclass(frozen=True, kw_only=True)
class Trial:
    """One training run of a sweep."""

    point: Point
    config: TrainingConfig
    """With `steps`, not epochs."""
    asked: Mapping[str, Any] = field(default_factory=dict)
    """The value of every axis that the point was made of, by path."""

    @property
    def name(self) -> str:
        return f"{self.point}-seed{self.config.seed}"


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """A trial's metrics at one step, and the level of guessing for each."""

    step: int
    samples: int
    """Images seen by then."""
    metrics: Mapping[str, float]
    chance: Mapping[str, float]


@dataclass(frozen=True, kw_only=True)
class TrialResult:
    """A trial as far as it got."""

    point: Point
    seed: int
    budget: int
    """Images that a trial sees when nothing stops it."""
    evaluations: tuple[Evaluation, ...] = ()
    """In the order of their steps; none for a trial that failed before its first."""
    state: Literal["unfinished", "finished", "stopped", "failed"] = "unfinished"
    """stopped: by the scheduler."""
    error: str | None = None
    asked: Mapping[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        return f"{self.point}-seed{self.seed}"

    @property
    def samples(self) -> int:
        """Images seen by the last evaluation."""
        return self.evaluations[-1].samples if self.evaluations else 0

    @property
    def metrics(self) -> Mapping[str, float]:
        """Metrics of the last evaluation."""
        return self.evaluations[-1].metrics if self.evaluations else {}

    @property
    def chance(self) -> Mapping[str, float]:
        return self.evaluations[-1].chance if self.evaluations else {}

    @property
    def finished(self) -> bool:
        return self.state == "finished"

    @property
    def ended(self) -> bool:
        """Whether nothing is left to train."""
        return self.state in ("finished", "stopped")

    def evaluated(self, found: Evaluation) -> "TrialResult":
        """The result with one more evaluation, in place of those of the same and of later steps: a resumed trial does
        them again."""
        before = tuple(e for e in self.evaluations if e.step < found.step)
        return replace(self, evaluations=(*before, found))

    def written(self) -> dict[str, Any]:
        """As JSON."""
        point = {"name": self.point.name, "recipe": self.point.recipe}
        values = {"values": dict(self.point.values), "fields": dict(self.point.fields), "asked": dict(self.asked)}
        state = {"seed": self.seed, "budget": self.budget, "state": self.state, "error": self.error}
        return point | values | state | {"evaluations": [asdict(e) for e in self.evaluations]}


def unfinished(trial: Trial) -> TrialResult:
    """The result of a trial that has not started."""
    return TrialResult(point=trial.point, seed=trial.config.seed, budget=trial.config.samples, asked=dict(trial.asked))


def write(folder: str, result: TrialResult) -> None:
    """Write the record of a trial into its folder."""
    storage.write_json(storage.join(folder, RECORD), result.written())


def read(folder: str, trial: Trial) -> TrialResult:
    """Result of a trial, from its folder; that of a trial that has not started where the folder has no record."""
    uri = storage.join(folder, RECORD)
    if not storage.exists(uri):
        return unfinished(trial)
    known = storage.read_json(uri)
    evaluations = tuple(Evaluation(**cast(Any, e)) for e in known["evaluations"])
    return replace(unfinished(trial), evaluations=evaluations, state=known["state"], error=known["error"])


def recorded(folder: str) -> dict[str, dict[str, Any]]:
    """The records of all trials under a folder, by the trial's name, as JSON."""
    found = storage.listing(folder, f"/{RECORD}")
    return {uri.split("/")[-2]: storage.read_json(uri) for uri in found}


def left_chance(value: float, chance: float) -> bool:
    """Whether a metric says something yet."""
    return value - chance > MARGIN * min(chance, 1 - chance)


def evaluation_of(reported: Mapping[str, Any], chance: str) -> Evaluation:
    """An evaluation as `launching.reported` has it; `chance` is the prefix of chance levels."""
    levels = {name.removeprefix(chance): level for name, level in reported.items() if name.startswith(chance)}
    return Evaluation(
        step=reported["step"],
        samples=reported["samples"],
        metrics={name: reported[name] for name in levels},
        chance=levels,
    )
