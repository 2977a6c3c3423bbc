"""The MLP of a transformer block: two linear layers around an activation.

The constants of QuickGELU take no pass over anything. It is `x · sigmoid(c x) = SiLU(c x) / c`, c = 1.702; a product
scales its result at no cost, and in the backward pass they cancel everywhere but in the gradient of the second matrix.

Axes: N positions · W width · H hidden width.
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from llip.config import Activation

Layers = Callable[[Tensor, nn.Linear, nn.Linear], Tensor]


def gelu_mlp(x_BNW: Tensor, up: nn.Linear, down: nn.Linear) -> Tensor:
    """`down(gelu(up(x)))`, with the exact GELU."""
    out_BNW: Tensor = down(F.gelu(up(x_BNW)))
    return out_BNW


def quick_gelu_mlp(x_BNW: Tensor, up: nn.Linear, down: nn.Linear) -> Tensor:
    """`down(quick_gelu(up(x)))`, in the precision of autocast where it is on."""
    device = x_BNW.device.type
    autocast = torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)
    dtype = torch.get_autocast_dtype(device) if autocast else x_BNW.dtype
    operands = (x_BNW.flatten(0, -2), up.weight, up.bias, down.weight, down.bias)
    out_NW: Tensor = _QuickGeluMlp.apply(*(operand.to(dtype) for operand in operands))
    return out_NW.view(*x_BNW.shape[:-1], -1)


class _QuickGeluMlp(torch.autograd.Function):
    """The constants are written out, because torch.compile takes named ones for inputs that may change."""

    @staticmethod
    def forward(ctx: Any, x_NW: Tensor, up_HW: Tensor, up_H: Tensor, down_WH: Tensor, down_W: Tensor) -> Tensor:
        scaled_NH = torch.addmm(up_H, x_NW, up_HW.T, beta=1.702, alpha=1.702)
        active_NH = F.silu(scaled_NH)
        ctx.save_for_backward(x_NW, scaled_NH, active_NH, up_HW, down_WH)
        return torch.addmm(down_W, active_NH, down_WH.T, alpha=1 / 1.702)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient_NW: Tensor) -> tuple[Tensor, ...]:
        x_NW, scaled_NH, active_NH, up_HW, down_WH = ctx.saved_tensors
        hidden_NH = torch.ops.aten.silu_backward(gradient_NW @ down_WH, scaled_NH)
        down_gradient_WH = torch.addmm(down_WH, gradient_NW.T, active_NH, beta=0, alpha=1 / 1.702)
        return hidden_NH @ up_HW, hidden_NH.T @ x_NW, hidden_NH.sum(0), down_gradient_WH, gradient_NW.sum(0)


MLPS: dict[Activation, Layers] = {"quick_gelu": quick_gelu_mlp, "gelu": gelu_mlp}
