"""Runs of a few steps in this process, some of which crash."""

from collections.abc import Callable
from typing import Any

from helpers.noted_pretrain import noted
from llip.config import TrainingConfig
from llip.contrastive import ContrastiveModel
from llip.runs.tracking import Tracker
from llip.training import checkpoint
from llip.training.loop import train
from llip.training.parallel import current_world


def train_noted(config: TrainingConfig, shards: str | tuple[str, ...], folder: str, **options: Any) -> ContrastiveModel:
    """Train to the end and write down the samples of every step; `options` are those of `train`."""
    with noted(folder), Tracker(None, folder) as tracker:
        return train(config, shards=shards, folder=folder, world=current_world(), tracker=tracker, **options)


class CrashError(Exception):
    pass


def crashing_after(step: int) -> Callable[..., object]:
    """A bar that raises in the middle of training, after `step` updates."""

    class Bar:
        def __init__(self, **settings: object) -> None:
            self.left = step

        def __enter__(self) -> "Bar":
            return self

        def __exit__(self, *_: object) -> None: ...

        def set_postfix_str(self, text: str, refresh: bool = True) -> None: ...

        def update(self, n: int) -> None:
            self.left -= 1
            if self.left == 0:
                raise CrashError

    return Bar


def newest(folder: str) -> str:
    """The folder of a run's newest checkpoint, of which there has to be one."""
    found = checkpoint.latest(folder)
    assert found is not None, f"{folder} has no checkpoint"
    return found
