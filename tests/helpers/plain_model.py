"""The model of the paper written out sample by sample, without the savings of `llip.model`: what tests compare with.

Takes the parameters of a ContrastiveModel; token ids are 0-padded to the whole context, as CLIP does it.
"""

import math
from collections.abc import Callable, Iterable
from typing import Any, cast

import torch
from torch import Tensor

from llip.contrastive import ContrastiveModel
from llip.model.features import MixtureProjection
from llip.model.towers import Block


def layer_norm(x: Tensor, norm: torch.nn.LayerNorm, epsilon: float = 1e-5) -> Tensor:
    centred = x - x.mean(-1, keepdim=True)
    return centred / (centred.square().mean(-1, keepdim=True) + epsilon).sqrt() * norm.weight + norm.bias


ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "quick_gelu": lambda x: x * torch.sigmoid(1.702 * x),
    "gelu": lambda x: x * (1 + torch.erf(x / math.sqrt(2))) / 2,
    "gelu_tanh": lambda x: x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))) / 2,
}


def block(x_NW: Tensor, parameters: Block, mask_NN: Tensor, activation: str, epsilon: float) -> Tensor:
    heads, normed = parameters.attention.heads, layer_norm(x_NW, parameters.attention_norm, epsilon)
    qkv = normed @ parameters.attention.qkv.weight.T + parameters.attention.qkv.bias
    query, key, value = qkv.chunk(3, dim=-1)
    outputs = []
    for q, k, v in zip(query.chunk(heads, -1), key.chunk(heads, -1), value.chunk(heads, -1), strict=True):
        logits = (q @ k.T * q.shape[-1] ** -0.5).masked_fill(~mask_NN, -torch.inf)
        outputs.append(logits.softmax(-1) @ v)
    x_NW = x_NW + torch.cat(outputs, -1) @ parameters.attention.out.weight.T + parameters.attention.out.bias
    hidden = layer_norm(x_NW, parameters.mlp_norm, epsilon) @ parameters.mlp_up.weight.T + parameters.mlp_up.bias
    return x_NW + ACTIVATIONS[activation](hidden) @ parameters.mlp_down.weight.T + parameters.mlp_down.bias


def image_states(model: ContrastiveModel, pixels_CHW: Tensor) -> Tensor:
    """All K + P final states."""
    vision, size, epsilon = model.vision, model.config.vision.patch_size, model.config.vision.norm_epsilon
    rows = pixels_CHW.shape[1] // size
    patches = [
        torch.einsum("chw,dchw->d", pixels_CHW[:, r * size : (r + 1) * size, c * size : (c + 1) * size], kernel)
        for kernel in [vision.patch_embedding.weight]
        for r in range(rows)
        for c in range(rows)
    ]
    x_NW = torch.cat([vision.tokens, torch.stack(patches)]) + vision.position
    x_NW = layer_norm(x_NW, vision.norm_before, epsilon)
    everything = torch.ones(len(x_NW), len(x_NW), dtype=torch.bool)
    for parameters in cast(Iterable[Block], vision.transformer.blocks):
        x_NW = block(x_NW, parameters, everything, model.config.activation, epsilon)
    return layer_norm(x_NW, vision.norm_after, epsilon)


def text_states(model: ContrastiveModel, words: list[int]) -> Tensor:
    """The state of the end-of-text token, the last of `words`, [1, W]; or those of the latents behind it, [K, W]."""
    text, context, epsilon = model.text, model.config.text.context_length, model.config.text.norm_epsilon
    activation = model.config.text.activation or model.config.activation
    if text.latents is None:
        ids = torch.tensor(words + [0] * (context - len(words)))
        x_NW, kept = text.token_embedding.weight[ids] + text.position, slice(len(words) - 1, len(words))
    else:
        caption = text.token_embedding.weight[words] + text.position[: len(words)]
        x_NW, kept = torch.cat([caption, text.latents]), slice(len(words), None)
    causal = torch.ones(len(x_NW), len(x_NW), dtype=torch.bool).tril()
    for parameters in cast(Iterable[Block], text.transformer.blocks):
        x_NW = block(x_NW, parameters, causal, activation, epsilon)
    return layer_norm(x_NW, text.norm_after, epsilon)[kept]


def mixture(keys: list[Tensor], values: list[Tensor], query: Tensor, heads: int, temperature: float) -> Tensor:
    """Llip, eq. 2 and 3, without W_O: one query, one sample."""
    mixed = []
    for m in range(heads):
        part = slice(m * len(query) // heads, (m + 1) * len(query) // heads)
        weights = torch.stack([query[part] @ key[part] / temperature for key in keys]).softmax(0)
        mixed.append(torch.stack([w * value[part] for w, value in zip(weights, values, strict=True)]).sum(0))
    return torch.cat(mixed)


def maybe_norm(x: Tensor, norm: torch.nn.Module) -> Tensor:
    return layer_norm(x, norm) if isinstance(norm, torch.nn.LayerNorm) else x


def projected(states_KW: Tensor, matrix: Tensor, norm: torch.nn.Module) -> list[Tensor]:
    """Each token by its own matrix [K, W, D], or all by one [W, D]."""
    return [maybe_norm(s @ (matrix if matrix.ndim == 2 else matrix[k]), norm) for k, s in enumerate(states_KW)]


def keys_and_values(projection: MixtureProjection, states_KW: Tensor) -> tuple[list[Tensor], list[Tensor]]:
    keys = projected(states_KW, projection.key_proj, projection.key_norm)
    return keys, projected(states_KW, projection.value_proj, projection.value_norm)


def contextual_feature(model: ContrastiveModel, pixels_CHW: Tensor, words: list[int]) -> tuple[Tensor, Tensor]:
    """The two vectors whose cosine is the pair score: the mixed one and the target, not normalised."""
    config = model.config.head
    head: Any = model.head  # what its two sides hold follows from its kind
    image_NW, text_KW = image_states(model, pixels_CHW), text_states(model, words)
    image_KW = image_NW if config.patch_tokens else image_NW[: model.config.vision.tokens]
    match config.kind:
        case "class_token" | "register":
            return image_KW[0] @ head.image.proj, text_KW[0] @ head.text.proj
        case "mean":
            values = projected(image_KW, head.image.value_proj, head.image.value_norm)
            return torch.stack(values).mean(0) @ head.out_proj, text_KW[0] @ head.text.proj
        case "learned_query":
            keys, values = keys_and_values(head.image.mixture, image_KW)
            query, target = head.image.query.flatten(), text_KW[0] @ head.text.proj
        case "text_query":
            keys, values = keys_and_values(head.image, image_KW)
            query = maybe_norm(text_KW[0] @ head.text.query_proj, head.text.query_norm)
            target = text_KW[0] @ head.text.target_proj
        case "image_query":
            keys, values = keys_and_values(head.text, text_KW)
            query = maybe_norm(image_KW[0] @ head.image.query_proj, head.image.query_norm)
            target = image_KW[0] @ head.image.target_proj
    return mixture(keys, values, query, config.heads, config.temperature) @ head.out_proj, target
