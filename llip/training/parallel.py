"""Everything about devices, ranks, wrapping and precision: the model and the loop stay single-device code."""

import contextlib
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from llip.config import TrainingConfig
from llip.model.build import ContrastiveModel
from llip.model.features import ImageFeatures, TextFeatures


@dataclass(frozen=True, kw_only=True)
class World:
    """This process among those that train together."""

    rank: int
    size: int
    device: torch.device
    group: dist.ProcessGroup | None
    """None for a single process."""

    def mean(self, values: Sequence[Tensor | float]) -> list[float]:
        """Scalars averaged over the ranks, the same numbers on all of them."""
        packed = torch.stack([torch.as_tensor(v, dtype=torch.float64, device=self.device).detach() for v in values])
        if self.group is not None:
            dist.all_reduce(packed, group=self.group)
        return [value / self.size for value in packed.tolist()]

    def barrier(self) -> None:
        if self.group is not None:
            dist.barrier(group=self.group)


def current_world() -> World:
    """The ranks of the process group that Ray Train or torchrun has set up, or this process alone; its GPU, if any."""
    device = torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_available() else torch.device("cpu")
    if not dist.is_initialized():
        return World(rank=0, size=1, device=device, group=None)
    return World(rank=dist.get_rank(), size=dist.get_world_size(), device=device, group=dist.group.WORLD)


class Towers:
    """A model's forward pass as a rank runs it: compiled, recomputing, under autocast, averaging gradients."""

    def __init__(self, model: ContrastiveModel, config: TrainingConfig, world: World) -> None:
        model.set_activation_checkpointing(config.activation_checkpointing)
        self._autocast = torch.autocast(world.device.type, torch.bfloat16, enabled=config.precision == "bf16")
        if config.compile:
            model.compile_towers()
        self._forward: Any = model
        if world.group is not None:
            # W_O, scale and bias are used by the loss alone; DDP waits for their gradients as well.
            self._forward = DistributedDataParallel(model, process_group=world.group, gradient_as_bucket_view=True)

    def __call__(self, pixels_BCHW: Tensor, token_ids_TL: Tensor) -> tuple[ImageFeatures, TextFeatures]:
        """Features in the run's precision."""
        with self._autocast:
            return self._forward(pixels_BCHW, token_ids_TL)

    def no_sync(self) -> AbstractContextManager[None]:
        """Backward passes inside keep their gradients to this rank: all but the last part of an accumulated step."""
        return (
            self._forward.no_sync() if isinstance(self._forward, DistributedDataParallel) else contextlib.nullcontext()
        )


def gradient_norm(model: nn.Module) -> Tensor:
    """L2 norm of the gradient of all parameters, a scalar."""
    return torch.nn.utils.get_total_norm([p.grad for p in model.parameters() if p.grad is not None])


def seed_step(seed: int, step: int, rank: int) -> None:
    """Make the randomness of a step a function of (seed, step, rank): no generator state has to be saved."""
    torch.manual_seed(((seed * 1_000_003 + step) * 65_537 + rank) % 2**63)
