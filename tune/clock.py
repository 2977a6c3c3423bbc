"""Cost of a training step: its FLOPs, and its seconds here, measured one run at a time."""

import os
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

from llip import storage
from llip.config import TrainingConfig
from llip.fields import override

if TYPE_CHECKING:
    from tune.trials import TrialPlan

ROUNDS, STEPS, WARM = 3, 40, 10
"""Timed runs of a model, their steps, and those of these that do not count."""
NAME = "clock.json"
TRIAL_SECONDS = 25.0
"""Time of a trial on the CPU beside its steps: the start of its process, and its evaluation."""


@dataclass(frozen=True, kw_only=True)
class StepCost:
    """Cost of one training step of a model."""

    seconds: float
    """Seconds that the clock showed: see `unit`."""
    caption_tokens: int
    """Mean length of the captions, start and end included, as FLOPs are counted for."""


@dataclass(frozen=True)
class Clock:
    """Seconds a step of some models, and what they say of others by the FLOPs of a step."""

    costs: Mapping[str, StepCost]
    flops: Mapping[str, float]
    """FLOPs of a step of the same models."""

    @property
    def caption_tokens(self) -> int:
        return next(iter(self.costs.values())).caption_tokens

    def seconds(self, name: str, flops: float) -> float:
        """Seconds a step: measured, or from its FLOPs at the rate of those that were measured."""
        if name in self.costs:
            return self.costs[name].seconds
        return flops * statistics.median(cost.seconds / self.flops[known] for known, cost in self.costs.items())


def unit() -> str:
    """Unit of `measured`: seconds of the CPU, which other programs change little, or, with a GPU, of a clock."""
    import torch

    return "seconds" if torch.cuda.is_available() else "CPU seconds"


def measured(plan: "TrialPlan", configs: Mapping[str, TrainingConfig]) -> Clock:
    """Seconds a step of every model: kept in the plan's folder, or measured now on one thread, the models in turn. The
    least of all rounds counts, since other programs only add."""
    uri = storage.join(plan.folder, NAME)
    known = storage.read_json(uri) if storage.exists(uri) else {}
    missing, found = [name for name in configs if name not in known], dict[str, StepCost]()
    for name in ROUNDS * missing:
        cost = _measure(plan, storage.join(plan.folder, "clock"), configs[name])
        found[name] = min(found.get(name, cost), cost, key=lambda cost: cost.seconds)
    if missing:
        known |= {name: asdict(cost) for name, cost in found.items()}
        storage.write_json(uri, known)
    costs = {name: StepCost(**known[name]) for name in configs}
    return Clock(costs, flops_of(configs, next(iter(costs.values())).caption_tokens))


def flops_of(configs: Mapping[str, TrainingConfig], caption_tokens: int) -> dict[str, float]:
    """FLOPs of a training step of every model."""
    from llip.summary import step_flops

    return {name: step_flops(config, caption_tokens).total for name, config in configs.items()}


def _measure(plan: "TrialPlan", folder: str, config: TrainingConfig) -> StepCost:
    import torch

    from llip.runs.tracking import read_metrics
    from pipelines import launching

    ticks: list[float] = []
    now = time.perf_counter if torch.cuda.is_available() else time.process_time

    def tick() -> bool:
        """Asked once a step whether to stop."""
        ticks.append(now())
        return False

    storage.remove(folder)
    timed = override(config, {"steps": STEPS, "optimizer.warmup_share": 0.0, "checkpoint_every": STEPS, "log_every": 1})
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        run = launching.Run(config=timed, shards=plan.shards, folder=folder)
        launching.train_and_evaluate(run, preempted=tick, progress=launching.silent)
    finally:
        torch.set_num_threads(threads)
    lines = [line for line in read_metrics(folder) if "tokens_per_second" in line]
    storage.remove(folder)
    captions = config.data.captions_per_image
    tokens = statistics.mean(line["tokens_per_second"] / line["samples_per_second"] for line in lines) / captions
    counted = ticks[WARM : -config.data.prefetch]  # the loader, that far ahead, has nothing to do in the last steps
    return StepCost(seconds=(counted[-1] - counted[0]) / (len(counted) - 1), caption_tokens=round(tokens))


def told(left: Sequence[tuple[float, int]], concurrency: int | None) -> str:
    """Sentence on the cost of trials, each given by its seconds a step and its steps."""
    import torch

    if not left:
        return "every trial is finished"
    at_once = concurrency or torch.cuda.device_count() or len(os.sched_getaffinity(0))
    hours = sum(of_step * steps + TRIAL_SECONDS for of_step, steps in left) / at_once / 3600
    return f"{len(left)} trials, about {hours:.1f} hours at the rate measured here, {at_once} at a time"
