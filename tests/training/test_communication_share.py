"""The share of time that a rank waits for others, where one of two ranks is late by a known time."""

import time
from dataclasses import dataclass, replace
from functools import partial
from statistics import median
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from tqdm import tqdm

from llip.config import TrainingConfig
from llip.pairs import accumulation as accumulation_module
from llip.training import loop
from llip.training.parallel import Towers, current_world
from llip.training.tracking import Tracker

DELAY = 0.3
"""Seconds by which the second rank is late in every step: far more than all else in a step takes."""
VARIANTS = [("ddp", "gather", 1), ("ddp", "ring", 1), ("ddp", "gather", 2), ("fsdp", "gather", 1)]
PLACES = ("before the towers", "before the loss", "in the backward pass")


@dataclass(frozen=True)
class Late:
    """A training run in each variant, in which the second of two ranks is late in each of the places."""

    config: TrainingConfig
    shards: str
    folder: str

    def __call__(self, rank: int, size: int) -> None:
        torch.set_num_threads(1)
        dist.init_process_group("gloo", init_method=f"file://{self.folder}/store", rank=rank, world_size=size)
        waits = {
            (*variant, place): self._waits(*variant, place, late=rank == 1) for variant in VARIANTS for place in PLACES
        }
        torch.save(waits, f"{self.folder}/rank-{rank}.pt")
        dist.destroy_process_group()

    def _waits(self, parallel: Any, exchange: Any, accumulation: int, place: str, *, late: bool) -> float:
        """Seconds that this rank waits in a step."""
        objective = replace(self.config.objective, exchange=exchange, accumulation=accumulation)
        config = replace(self.config, parallel=parallel, objective=objective)
        lines: list[dict[str, float]] = []
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Tracker, "log", lambda tracker, step, values: lines.append(values))
            if late:
                _be_late(patch, place, accumulation)
            folder = f"{self.folder}/{parallel}-{exchange}-{accumulation}-{place}"
            with Tracker(None, folder, enabled=False) as tracker:
                loop.train(
                    config,
                    shards=self.shards,
                    folder=folder,
                    world=current_world(),
                    tracker=tracker,
                    progress=partial(tqdm, disable=True),
                )
        batch = config.data.batch_size
        return median(line["communication_share"] * batch / line["samples_per_second"] for line in lines)


def _be_late(patch: pytest.MonkeyPatch, place: str, accumulation: int) -> None:
    """Sleep in one place of every step, for `DELAY` seconds in all."""
    parts, loss, forward = loop.parts, accumulation_module.loss_of_features, Towers.__call__

    def after_sleep(function: Any, *inputs: Any, **settings: Any) -> Any:
        time.sleep(DELAY)
        return function(*inputs, **settings)

    def sleeping_backwards(towers: Towers, *inputs: torch.Tensor) -> Any:
        images, texts = forward(towers, *inputs)
        if images[0].requires_grad:
            images[0].register_hook(lambda gradient: time.sleep(DELAY / accumulation))
        return images, texts

    match place:
        case "before the towers":
            patch.setattr(loop, "parts", partial(after_sleep, parts))
        case "before the loss":
            patch.setattr(accumulation_module, "loss_of_features", partial(after_sleep, loss))
        case "in the backward pass":
            patch.setattr(Towers, "__call__", sleeping_backwards)


@pytest.fixture(scope="module")
def waits(small: TrainingConfig, shards: str, tmp_path_factory: pytest.TempPathFactory) -> list[dict[Any, float]]:
    """Of both ranks."""
    folder = str(tmp_path_factory.mktemp("late"))
    mp.spawn(Late(replace(small, steps=3, checkpoint_every=100), shards, folder), (2,), nprocs=2)
    return [torch.load(f"{folder}/rank-{rank}.pt", weights_only=True) for rank in range(2)]


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("place", PLACES)
def test_a_rank_waits_for_the_late_one(
    variant: tuple[str, str, int], place: str, waits: list[dict[Any, float]]
) -> None:
    punctual, late = (rank[*variant, place] for rank in waits)
    assert punctual - late == pytest.approx(DELAY, abs=DELAY / 3)  # both wait for what travels, one for the other too
    assert late < punctual / 2
