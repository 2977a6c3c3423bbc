"""AdamW, its parameter groups, the learning rate of a step (MetaCLIP's recipe, which Llip keeps), and the average of
the weights."""

import itertools
import math

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from llip.config import TrainingConfig
from llip.training.parallel import local


def learning_rate(step: int, config: TrainingConfig) -> float:
    """Rate of update number `step`, from 0: a line up to the last warm-up update, then a cosine to 0."""
    peak, warmup = config.optimizer.learning_rate, config.warmup_steps
    if step < warmup:
        return peak * (step + 1) / warmup
    progress = (step - warmup) / (config.total_steps - warmup)
    return peak * 0.5 * (1 + math.cos(math.pi * progress))


def uses_weight_decay(parameter: Tensor) -> bool:
    """Whether weight decay applies: to matrices. Norms, biases, scales and a lone class token [1, W] are not."""
    return sum(size > 1 for size in parameter.shape) >= 2


def build_optimizer(model: nn.Module, config: TrainingConfig) -> torch.optim.AdamW:
    """AdamW with weight decay on matrices only, as one fused kernel; the loop sets the learning rate of every step."""
    settings = config.optimizer
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    groups = [
        {"params": group, "weight_decay": settings.weight_decay if decay else 0.0}
        for decay, sharded in itertools.product((True, False), (False, True))  # a kernel takes shards or whole tensors
        if (group := [p for p in trained if (uses_weight_decay(p), isinstance(p, DTensor)) == (decay, sharded)])
    ]
    return torch.optim.AdamW(groups, lr=settings.learning_rate, betas=config.betas, eps=settings.eps, fused=True)


def set_learning_rate(optimizer: torch.optim.Optimizer, value: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = value


class MovingAverage:
    """`average ← decay · average + (1 - decay) · weight` after every update, from the initial weights on.

    Lies where the parameters lie and is sharded as they are.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self._model, self._decay = model, decay
        self.tensors: dict[str, Tensor] = {name: p.detach().clone() for name, p in model.named_parameters()}

    @torch.no_grad()
    def update(self) -> None:
        averages = [local(tensor) for tensor in self.tensors.values()]
        torch._foreach_lerp_(averages, [local(p) for p in self._model.parameters()], 1 - self._decay)
