"""The pre-LN transformer that both towers of CLIP are made of.

Axes: B rows · N positions of a row · Q positions that are kept · W width · H attention heads · E width of a head.
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

QUICK_GELU_SLOPE = 1.702

Select = Callable[[Tensor], Tensor]
"""Picks the kept positions: [B, N, W] -> [B, Q, W]."""


def quick_gelu(x: Tensor) -> Tensor:
    """x · sigmoid(1.702 x), as a scaled SiLU: one fused kernel that keeps one activation for the backward pass."""
    return F.silu(QUICK_GELU_SLOPE * x) * (1 / QUICK_GELU_SLOPE)


class Attention(nn.Module):
    """Multi-head self-attention."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)

    def forward(self, x_BNW: Tensor, mask_B1NN: Tensor | None) -> Tensor:
        query_BNW, key_BNW, value_BNW = self.qkv(x_BNW).chunk(3, dim=-1)
        return self._attend(query_BNW, key_BNW, value_BNW, mask_B1NN)

    def forward_kept(self, x_BNW: Tensor, kept_BQW: Tensor, mask_B1QN: Tensor | None) -> Tensor:
        """The output at the kept positions only: the others serve as keys and values."""
        width = x_BNW.shape[-1]
        weight, bias = self.qkv.weight, self.qkv.bias
        query_BQW = F.linear(kept_BQW, weight[:width], bias[:width])
        key_BNW, value_BNW = F.linear(x_BNW, weight[width:], bias[width:]).chunk(2, dim=-1)
        return self._attend(query_BQW, key_BNW, value_BNW, mask_B1QN)

    def _attend(self, query_BQW: Tensor, key_BNW: Tensor, value_BNW: Tensor, mask_B1QN: Tensor | None) -> Tensor:
        query, key, value = (x.unflatten(-1, (self.heads, -1)).transpose(1, 2) for x in (query_BQW, key_BNW, value_BNW))
        mixed_BHQE = F.scaled_dot_product_attention(query, key, value, attn_mask=mask_B1QN)
        return self.out(mixed_BHQE.transpose(1, 2).flatten(2))


class Block(nn.Module):
    """One residual block: attention, then an MLP, each behind its own LayerNorm."""

    def __init__(self, width: int, heads: int, mlp_width: int) -> None:
        super().__init__()
        self.attention_norm = nn.LayerNorm(width)
        self.attention = Attention(width, heads)
        self.mlp_norm = nn.LayerNorm(width)
        self.mlp_up = nn.Linear(width, mlp_width)
        self.mlp_down = nn.Linear(mlp_width, width)

    def forward(self, x_BNW: Tensor, mask_B1NN: Tensor | None) -> Tensor:
        return self._mlp(x_BNW + self.attention(self.attention_norm(x_BNW), mask_B1NN))

    def forward_kept(self, x_BNW: Tensor, keep: Select, mask_B1QN: Tensor | None) -> Tensor:
        """The block's output at the kept positions only, [B, Q, W]."""
        normed_BNW = self.attention_norm(x_BNW)
        return self._mlp(keep(x_BNW) + self.attention.forward_kept(normed_BNW, keep(normed_BNW), mask_B1QN))

    def _mlp(self, x: Tensor) -> Tensor:
        return x + self.mlp_down(quick_gelu(self.mlp_up(self.mlp_norm(x))))


class Transformer(nn.Module):
    """Residual blocks of which the last computes the kept positions only: nothing reads its other outputs."""

    activation_checkpointing: bool = False
    """Recompute each block in the backward pass instead of keeping its activations."""

    def __init__(self, width: int, layers: int, heads: int, mlp_width: int | None) -> None:
        super().__init__()
        self.width = width
        self.blocks = nn.ModuleList(Block(width, heads, mlp_width or 4 * width) for _ in range(layers))

    def forward(
        self, x_BNW: Tensor, keep: Select, *, mask_B1NN: Tensor | None = None, mask_B1QN: Tensor | None = None
    ) -> Tensor:
        """Final states of the kept positions, [B, Q, W].

        The masks (True: attend) say what a position sees in every block, and what a kept one sees in the last.
        """
        *body, last = self.blocks
        for block in body:
            x_BNW = self._run(block, x_BNW, mask_B1NN)
        return self._run(last.forward_kept, x_BNW, keep, mask_B1QN)

    def _run(self, function: Any, *args: Any) -> Tensor:
        if self.activation_checkpointing and torch.is_grad_enabled():
            return checkpoint(function, *args, use_reentrant=False)
        return function(*args)


def initialise_uniformly(transformer: Transformer) -> None:
    """OpenAI's CLIP, image tower: Xavier for the attention's input, PyTorch's own for the other matrices."""
    for module in transformer.modules():
        if isinstance(module, Attention):
            nn.init.xavier_uniform_(module.qkv.weight)
            nn.init.zeros_(module.qkv.bias)
            nn.init.zeros_(module.out.bias)


def initialise_by_depth(transformer: Transformer) -> None:
    """OpenAI's CLIP, text tower: what is added to the residual stream shrinks with the number of layers."""
    inner, residual = transformer.width**-0.5, (2 * transformer.width * len(transformer.blocks)) ** -0.5
    for module in transformer.modules():
        if isinstance(module, Attention):
            nn.init.normal_(module.qkv.weight, std=inner)
            nn.init.normal_(module.out.weight, std=residual)
            nn.init.zeros_(module.qkv.bias)
            nn.init.zeros_(module.out.bias)
        elif isinstance(module, Block):
            nn.init.normal_(module.mlp_up.weight, std=inner * 2**-0.5)
            nn.init.normal_(module.mlp_down.weight, std=residual)
