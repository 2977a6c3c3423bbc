"""The pre-LN transformer that both towers of CLIP are made of.

Axes: B rows · N positions of a row · Q positions that are kept · W width · H attention heads · E width of a head.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

QUICK_GELU_SLOPE = 1.702

Select = Callable[[Tensor], Tensor]
"""Picks the kept positions: [B, N, W] -> [B, Q, W]."""


def quick_gelu(x: Tensor) -> Tensor:
    """x * sigmoid(1.702 x), as a scaled SiLU: one fused kernel that keeps one activation for the backward pass."""
    return F.silu(QUICK_GELU_SLOPE * x) * (1 / QUICK_GELU_SLOPE)


class Attention(nn.Module):
    """Multi-head self-attention; queries may be asked for fewer positions than there are keys."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)

    def forward(self, x_BNW: Tensor, mask_B1NN: Tensor | None, causal: bool) -> Tensor:
        q, k, v = (self._split(part) for part in self.qkv(x_BNW).chunk(3, dim=-1))
        return self._attend(q, k, v, mask_B1NN, causal)

    def forward_kept(self, x_BNW: Tensor, kept_BQW: Tensor, mask_B1QN: Tensor | None) -> Tensor:
        """The output at the kept positions only: everything else serves as keys and values."""
        width = x_BNW.shape[-1]
        weight, bias = self.qkv.weight, self.qkv.bias
        q = self._split(F.linear(kept_BQW, weight[:width], bias[:width]))
        k, v = (self._split(part) for part in F.linear(x_BNW, weight[width:], bias[width:]).chunk(2, dim=-1))
        return self._attend(q, k, v, mask_B1QN, causal=False)

    def _split(self, x_BNW: Tensor) -> Tensor:
        return x_BNW.unflatten(-1, (self.heads, -1)).transpose(1, 2)

    def _attend(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, causal: bool) -> Tensor:
        mixed_BHQE = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=causal)
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

    def forward(self, x_BNW: Tensor, mask_B1NN: Tensor | None, causal: bool) -> Tensor:
        return self._mlp(x_BNW + self.attention(self.attention_norm(x_BNW), mask_B1NN, causal))

    def forward_kept(self, x_BNW: Tensor, keep: Select, mask_B1QN: Tensor | None) -> Tensor:
        """The block's output at the kept positions only, [B, Q, W]: exact, since no other output is used after the last block."""
        normed_BNW = self.attention_norm(x_BNW)
        return self._mlp(keep(x_BNW) + self.attention.forward_kept(normed_BNW, keep(normed_BNW), mask_B1QN))

    def _mlp(self, x: Tensor) -> Tensor:
        return x + self.mlp_down(quick_gelu(self.mlp_up(self.mlp_norm(x))))


class Transformer(nn.Module):
    """Residual blocks of which only the kept positions of the last one are computed."""

    activation_checkpointing: bool = False
    """Recompute each block in the backward pass instead of keeping its activations."""

    def __init__(self, width: int, layers: int, heads: int, mlp_width: int | None) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Block(width, heads, mlp_width or 4 * width) for _ in range(layers))

    def forward(
        self,
        x_BNW: Tensor,
        keep: Select,
        *,
        mask_B1NN: Tensor | None = None,
        mask_B1QN: Tensor | None = None,
        causal: bool = False,
    ) -> Tensor:
        """Output at the kept positions, [B, Q, W].

        `mask_B1NN` (True: attend) or `causal` says what a position sees, `mask_B1QN` what a kept one sees in the last block.
        """
        *body, last = self.blocks
        for block in body:
            x_BNW = self._run(block, x_BNW, mask_B1NN, causal)
        return self._run(last.forward_kept, x_BNW, keep, mask_B1QN)

    def _run(self, function: Callable[..., Tensor], *args: object) -> Tensor:
        if self.activation_checkpointing and torch.is_grad_enabled():
            return checkpoint(function, *args, use_reentrant=False)  # type: ignore[no-any-return]
        return function(*args)
