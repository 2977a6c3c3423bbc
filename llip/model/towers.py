"""The towers: CLIP's vision transformer with K learnable tokens in place of the class token (Llip, section 3.1), CLIP's
causal text transformer, and the pre-LN transformer that both are made of.

Axes: B rows, or images · N positions of a row · Q positions that are kept · W width · H attention heads · E width of a
head. Images: C colours · H, W of pixels · P patches · K tokens, N = K + P. Captions: T captions · K kept states of a
caption · R rows of captions · S kept positions of a row · L positions of the context.
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.utils.checkpoint import checkpoint

from llip.config import NORM_EPSILON, Activation, TextConfig, VisionConfig

Kept = int | Tensor
"""Positions that something is computed for: the first ones of every row, or [B, Q] positions."""


def select(x_BNX: Tensor, kept: Kept) -> Tensor:
    """[B, N, X] -> [B, Q, X], at the kept positions."""
    if isinstance(kept, int):
        return x_BNX[:, :kept]
    return x_BNX.gather(1, kept[:, :, None].expand(-1, -1, x_BNX.shape[2]))


class Attention(nn.Module):
    """Multi-head self-attention."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)

    def forward(self, x_BNW: Tensor, kept_BQW: Tensor | None, mask_BQN: Tensor | None) -> Tensor:
        """The output at every position, or at the kept ones only: the others then serve as keys and values alone."""
        if kept_BQW is None:
            query, key, value = self.qkv(x_BNW).chunk(3, dim=-1)
        else:
            width, weight, bias = x_BNW.shape[-1], self.qkv.weight, self.qkv.bias
            query = F.linear(kept_BQW, weight[:width], bias[:width])
            key, value = F.linear(x_BNW, weight[width:], bias[width:]).chunk(2, dim=-1)
        query, key, value = (x.unflatten(-1, (self.heads, -1)).transpose(1, 2) for x in (query, key, value))
        mask_B1QN = None if mask_BQN is None else mask_BQN[:, None]
        mixed_BHQE = F.scaled_dot_product_attention(query, key, value, attn_mask=mask_B1QN)
        return self.out(mixed_BHQE.transpose(1, 2).flatten(2))


Layers = Callable[[Tensor, nn.Linear, nn.Linear], Tensor]


def gelu_mlp(x_BNW: Tensor, up: nn.Linear, down: nn.Linear) -> Tensor:
    """`down(gelu(up(x)))`, with the exact GELU."""
    out_BNW: Tensor = down(F.gelu(up(x_BNW)))
    return out_BNW


def gelu_tanh_mlp(x_BNW: Tensor, up: nn.Linear, down: nn.Linear) -> Tensor:
    """`down(gelu(up(x)))`, with the GELU that tanh approximates."""
    out_BNW: Tensor = down(F.gelu(up(x_BNW), approximate="tanh"))
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


MLPS: dict[Activation, Layers] = {"quick_gelu": quick_gelu_mlp, "gelu": gelu_mlp, "gelu_tanh": gelu_tanh_mlp}


class Block(nn.Module):
    """One residual block: attention, then an MLP, each behind its own LayerNorm."""

    def __init__(
        self, width: int, heads: int, mlp_width: int, activation: Activation, norm_epsilon: float = NORM_EPSILON
    ) -> None:
        super().__init__()
        self.attention_norm = nn.LayerNorm(width, norm_epsilon)
        self.attention = Attention(width, heads)
        self.mlp_norm = nn.LayerNorm(width, norm_epsilon)
        self.mlp_up = nn.Linear(width, mlp_width)
        self.mlp_down = nn.Linear(mlp_width, width)
        self.mlp = MLPS[activation]

    def forward(self, x_BNW: Tensor, mask_BNN: Tensor | None, kept: Kept | None = None) -> Tensor:
        """[B, N, W] -> [B, N, W], or [B, Q, W] at the kept positions only."""
        normed_BNW, kept_BQW, x_BQW = self.attention_norm(x_BNW), None, x_BNW
        if kept is not None:
            kept_BQW, x_BQW = select(normed_BNW, kept), select(x_BNW, kept)
            mask_BNN = None if mask_BNN is None else select(mask_BNN, kept)
        x_BQW = x_BQW + self.attention(normed_BNW, kept_BQW, mask_BNN)
        return x_BQW + self.mlp(self.mlp_norm(x_BQW), self.mlp_up, self.mlp_down)


class Transformer(nn.Module):
    """Residual blocks of which the last computes the kept positions only: nothing reads its other outputs."""

    activation_checkpointing: bool = False
    """Recompute each block in the backward pass instead of keeping its activations."""

    def __init__(self, tower: VisionConfig | TextConfig, heads: int, activation: Activation = "quick_gelu") -> None:
        super().__init__()
        self.width = tower.width
        mlp_width = tower.mlp_width or 4 * tower.width
        self.blocks = nn.ModuleList(
            Block(tower.width, heads, mlp_width, activation, tower.norm_epsilon) for _ in range(tower.layers)
        )

    def forward(self, x_BNW: Tensor, kept: Kept, mask_BNN: Tensor | None = None) -> Tensor:
        """Final states of the kept positions, [B, Q, W]. In the mask, True: the first position sees the second."""
        *body, last = self.blocks
        for block in body:
            x_BNW = self._run(block, x_BNW, mask_BNN)
        return self._run(last, x_BNW, mask_BNN, kept)

    def _run(self, block: nn.Module, *args: Any) -> Tensor:
        if self.activation_checkpointing and torch.is_grad_enabled():
            return checkpoint(block, *args, use_reentrant=False)
        return block(*args)


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


class VisionTransformer(nn.Module):
    """Pixels in, the final states of the kept positions out."""

    def __init__(self, config: VisionConfig, kept: int, activation: Activation = "quick_gelu") -> None:
        """`kept` positions are returned: 1 for the first token, K for the tokens, K + P for tokens and patches."""
        super().__init__()
        self.config = config
        self.kept = kept
        self.patch_embedding = nn.Conv2d(3, config.width, config.patch_size, config.patch_size, bias=False)
        self.tokens = nn.Parameter(torch.empty(config.tokens, config.width))
        self.position = nn.Parameter(torch.empty(config.tokens + config.patches, config.width))
        self.norm_before = nn.LayerNorm(config.width, config.norm_epsilon)
        self.transformer = Transformer(config, config.width // config.head_width, activation)
        self.norm_after = nn.LayerNorm(config.width, config.norm_epsilon)
        nn.init.normal_(self.tokens, std=config.width**-0.5)
        nn.init.normal_(self.position, std=config.position_std or config.width**-0.5)
        initialise_uniformly(self.transformer)

    def forward(self, pixels_BCHW: Tensor, kept: int | None = None) -> Tensor:
        """[B, 3, S, S] normalised pixels -> [B, kept, W]; other positions than the tower's are kept where `kept` says
        so. Raises ValueError for another shape.
        """
        size = self.config.image_size
        if pixels_BCHW.shape[1:] != (3, size, size):
            raise ValueError(f"pixels have shape {list(pixels_BCHW.shape)}; this model takes [B, 3, {size}, {size}]")
        states_BNW = self.norm_before(self._embed(pixels_BCHW))
        return self.norm_after(self.transformer(states_BNW, kept or self.kept))

    def _embed(self, pixels_BCHW: Tensor) -> Tensor:
        token_position_KW, patch_position_PW = self.position.split((self.config.tokens, self.config.patches))
        patches_BPW = self.patch_embedding(pixels_BCHW).flatten(2).transpose(1, 2) + patch_position_PW
        if self.training and self.config.patch_dropout:
            patches_BPW = self._drop(patches_BPW)
        tokens_BKW = (self.tokens + token_position_KW).expand(len(pixels_BCHW), -1, -1)
        return torch.cat([tokens_BKW, patches_BPW], dim=1)

    def _drop(self, patches_BPW: Tensor) -> Tensor:
        """A random subset of each image's patches, at least one (FLIP, arXiv 2212.00794). Their order means nothing."""
        batch, patches, width = patches_BPW.shape
        left = max(1, round(patches * (1 - self.config.patch_dropout)))
        chosen_BP = torch.rand(batch, patches, device=patches_BPW.device).topk(left, dim=1).indices
        return patches_BPW.gather(1, chosen_BP[:, :, None].expand(-1, -1, width))


class TextTransformer(nn.Module):
    """Captions in, the final state of each at its end-of-text token out, or those of K latents that read it.

    With `tokens` K > 1, K learned latents follow the end-of-text token: latent k attends to the whole caption and
    to the latents up to itself, no word sees a latent, and the states of the latents are kept. A latent is its own
    position embedding.
    """

    def __init__(self, config: TextConfig, activation: Activation = "quick_gelu") -> None:
        super().__init__()
        self.config = config
        self.latent_count = config.tokens if config.tokens > 1 else 0
        self.token_embedding = nn.Embedding(config.vocabulary, config.width)
        self.position = nn.Parameter(torch.empty(config.context_length, config.width))
        self.latents = nn.Parameter(torch.empty(self.latent_count, config.width)) if self.latent_count else None
        self.transformer = Transformer(config, config.heads, config.activation or activation)
        self.norm_after = nn.LayerNorm(config.width, config.norm_epsilon)
        self._initialise()

    def _initialise(self) -> None:
        """Draw weights with the deviations of OpenAI's CLIP."""
        nn.init.normal_(self.token_embedding.weight, std=0.02)
        nn.init.normal_(self.position, std=0.01)
        if self.latents is not None:
            nn.init.normal_(self.latents, std=0.02)
        initialise_by_depth(self.transformer)

    def forward(
        self, token_RN: Tensor, position_RN: Tensor, caption_RN: Tensor, kept_RS: Tensor, state_TK: Tensor
    ) -> Tensor:
        """The fields of `PackedCaptions` -> [T, K, W]."""
        mask_RNN = (caption_RN[:, :, None] == caption_RN[:, None, :]).tril()
        states_RSW = self.transformer(self._embed(token_RN, position_RN), kept_RS, mask_RNN)
        return self.norm_after(states_RSW.flatten(0, 1)[state_TK])

    def _embed(self, token_RN: Tensor, position_RN: Tensor) -> Tensor:
        words_RNW = self.token_embedding(token_RN)
        if self.latents is None:
            return words_RNW + F.embedding(position_RN, self.position)
        is_word_RN1 = (position_RN < self.config.context_length)[:, :, None]
        return words_RNW * is_word_RN1 + F.embedding(position_RN, torch.cat([self.position, self.latents]))
