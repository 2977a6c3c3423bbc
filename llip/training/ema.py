"""The exponential moving average of the weights."""

import torch
from torch import Tensor, nn

from llip.training.parallel import local


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
