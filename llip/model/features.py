"""Features, which the pair scores take, and the projections to them from the states of the towers (Llip, section 3.2).

Features are tuples of tensors whose first axis is the batch. Matrices multiply from the right (`state @ matrix`) and
have no bias.

Axes: B images, captions or both · T captions · K tokens · W width of the tower · M heads · E width of a head ·
D = M·E width of the compared space.

| head | image side | text side |
| --- | --- | --- |
| class_token, register, mean, learned_query | Pooled | Pooled |
| text_query (Llip) | Mixture | Query |
| image_query | Query | Mixture |
"""

import math
from collections.abc import Sequence
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from llip.config import HeadConfig, ModelConfig


class Pooled(NamedTuple):
    """One vector a sample, not normalised."""

    vector_BD: Tensor


class Mixture(NamedTuple):
    """Keys and values of the tokens that the other side's query mixes; the values before the output projection."""

    key_BMKE: Tensor
    value_BMKE: Tensor


class Query(NamedTuple):
    """A query that mixes the other side's tokens (raw: without the temperature), and the target to compare with."""

    query_BME: Tensor
    target_BD: Tensor


class Message(NamedTuple):
    """A Pooled or a Query made ready for many scores (`scoring.message`)."""

    vector_BW: Tensor
    """The unit vector (W = D), or the query and the target as values see it, `W_O t̂` (W = 2D)."""


class Terms(NamedTuple):
    """Weighted terms of the loss for each image, beside its pairs; their mean over the global batch is added."""

    loss_B: Tensor


ImageFeatures = Pooled | Mixture | Query
TextFeatures = Pooled | Mixture | Query
Extra = Pooled | Terms
"""Input of further losses: the image feature of a global loss, to be compared with the captions' targets, or terms."""
Outputs = tuple[ImageFeatures, TextFeatures, *tuple[Extra, ...]]
"""Result of a forward pass; with extras where the model has any and trains."""
Features = TypeVar("Features", bound=Pooled | Mixture | Query | Message | Terms)


def batch_slice(features: Features, rows: slice) -> Features:
    """The same features of some of the samples."""
    return type(features)(*(tensor[rows] for tensor in features))


def concatenate(parts: Sequence[Features]) -> Features:
    """The features of several batches as one."""
    return type(parts[0])(*(torch.cat(tensors) for tensors in zip(*parts, strict=True)))


def _matrix(*shape: int) -> nn.Parameter:
    """Columns of unit variance for inputs of unit variance: N(0, 1 / inputs)."""
    return nn.Parameter(torch.randn(*shape) * shape[-2] ** -0.5)


def _norm(width: int, head: HeadConfig) -> nn.Module:
    """LayerNorm over the full width, before the split into heads (H/14 and G/14), or nothing."""
    return nn.LayerNorm(width) if head.norm else nn.Identity()


def _token_matrix(tokens: int, width: int, embed_dim: int, head: HeadConfig) -> nn.Parameter:
    """One matrix [W, D] that all tokens share, or one for each of them, [K, W, D]."""
    return _matrix(width, embed_dim) if head.shared_projections else _matrix(tokens, width, embed_dim)


def _project(states_BKW: Tensor, matrix: Tensor, norm: nn.Module) -> Tensor:
    """Every token by the shared matrix or by its own, then its norm: [B, K, D]."""
    if matrix.ndim == 2:
        return norm(states_BKW @ matrix)
    return norm(states_BKW.transpose(0, 1) @ matrix).transpose(0, 1)


class PooledProjection(nn.Module):
    """The first state, projected: CLIP's image or caption feature."""

    def __init__(self, width: int, embed_dim: int) -> None:
        super().__init__()
        self.proj = _matrix(width, embed_dim)

    def forward(self, states_BKW: Tensor) -> Pooled:
        return Pooled(states_BKW[:, 0] @ self.proj)


class QueryProjection(nn.Module):
    """The first state as a query of M heads and as the target of the comparison."""

    def __init__(self, width: int, embed_dim: int, head: HeadConfig) -> None:
        super().__init__()
        self.heads = head.heads
        self.query_proj = _matrix(width, embed_dim)
        self.query_norm = _norm(embed_dim, head)
        self.target_proj = _matrix(width, embed_dim)

    def forward(self, states_BKW: Tensor) -> Query:
        state_BW = states_BKW[:, 0]
        query_BD = self.query_norm(state_BW @ self.query_proj)
        return Query(query_BD.unflatten(1, (self.heads, -1)), state_BW @ self.target_proj)


class MixtureProjection(nn.Module):
    """Keys and values of every token, by two matrices of its own or two that all tokens share.

    A token of zeros may follow (FLAIR): attention that falls on it adds nothing.
    """

    def __init__(self, tokens: int, width: int, embed_dim: int, head: HeadConfig) -> None:
        super().__init__()
        self.heads = head.heads
        self.key_proj = _token_matrix(tokens, width, embed_dim, head)
        self.key_norm = _norm(embed_dim, head)
        self.value_proj = _token_matrix(tokens, width, embed_dim, head)
        self.value_norm = _norm(embed_dim, head)
        self.empty_token = head.empty_token

    def forward(self, states_BKW: Tensor) -> Mixture:
        key_BKD = _project(states_BKW, self.key_proj, self.key_norm)
        value_BKD = _project(states_BKW, self.value_proj, self.value_norm)
        return Mixture(self._split(key_BKD), self._split(value_BKD))

    def _split(self, x_BKD: Tensor) -> Tensor:
        if self.empty_token:
            x_BKD = F.pad(x_BKD, (0, 0, 0, 1))
        return x_BKD.unflatten(2, (self.heads, -1)).transpose(1, 2)


class MeanMixture(nn.Module):
    """The uniform mixture of the values: the ablation without a query. Keys would change nothing, so there are none."""

    def __init__(self, tokens: int, width: int, embed_dim: int, head: HeadConfig) -> None:
        super().__init__()
        self.value_proj = _token_matrix(tokens, width, embed_dim, head)
        self.value_norm = _norm(embed_dim, head)

    def forward(self, states_BKW: Tensor) -> Tensor:
        """[B, K, W] -> the mixture [B, D], before the output projection."""
        return _project(states_BKW, self.value_proj, self.value_norm).mean(dim=1)


class LearnedQueryMixture(nn.Module):
    """The mixture by one learned query that all captions share: the ablation without a context."""

    def __init__(self, tokens: int, width: int, embed_dim: int, head: HeadConfig) -> None:
        super().__init__()
        self.temperature = head.mixing_temperature(embed_dim)
        self.mixture = MixtureProjection(tokens, width, embed_dim, head)
        self.query = nn.Parameter(torch.randn(head.heads, embed_dim // head.heads))

    def forward(self, states_BKW: Tensor) -> Tensor:
        """[B, K, W] -> the mixture [B, D], before the output projection."""
        return mix(self.mixture(states_BKW), self.query[None], self.temperature)[:, 0]


def mixing_weights(mixture: Mixture, query_TME: Tensor, temperature: float) -> Tensor:
    """Weights [B, T, M, K] of the tokens of each mixture under every query, or under T of its own [B, T, M, E].

    The softmax over the tokens of query times key over temperature (Llip, eq. 2).
    """
    return (torch.einsum("...tme,...mke->...tmk", query_TME, mixture.key_BMKE) / temperature).softmax(dim=-1)


def mix(mixture: Mixture, query_TME: Tensor, temperature: float) -> Tensor:
    """Mixed values [B, T, D] by `mixing_weights`, literally (Llip, eq. 3), before the output projection."""
    weight_BTMK = mixing_weights(mixture, query_TME, temperature)
    return torch.einsum("...tmk,...mke->...tme", weight_BTMK, mixture.value_BMKE).flatten(-2)


def mixing_entropy(mixture: Mixture, query_TME: Tensor, temperature: float) -> Tensor:
    """Entropy of the mixing weights of every pair and head, over its maximum ln K; the mean, a scalar in [0, 1]."""
    weight_BTMK = mixing_weights(Mixture(*(t.float() for t in mixture)), query_TME.float(), temperature)
    return torch.special.entr(weight_BTMK).sum(dim=-1).mean() / math.log(weight_BTMK.shape[-1])


class Head(nn.Module):
    """The projections of both towers, and W_O (`out_proj`), by the kind of head."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        head, dim = config.head, config.embed_dim
        vision, text, tokens = config.vision.width, config.text.width, config.mixture_tokens
        self.kind = head.kind
        self.global_image = PooledProjection(vision, dim) if head.global_weight else None
        """Projection of the first token, for the global loss."""
        self.image: nn.Module = PooledProjection(vision, dim)
        self.text: nn.Module = PooledProjection(text, dim)
        self.out_proj = _matrix(dim, dim) if head.kind not in ("class_token", "register") else None
        """W_O [D, D]: a feature is `mixture @ out_proj`. None where nothing is mixed."""
        match head.kind:
            case "mean":
                self.image = MeanMixture(tokens, vision, dim, head)
            case "learned_query":
                self.image = LearnedQueryMixture(tokens, vision, dim, head)
            case "text_query":
                self.image = MixtureProjection(tokens, vision, dim, head)
                self.text = QueryProjection(text, dim, head)
            case "image_query":
                self.image = QueryProjection(vision, dim, head)
                self.text = MixtureProjection(tokens, text, dim, head)

    def image_features(self, states_BKW: Tensor) -> ImageFeatures:
        if self.global_image is not None:
            states_BKW = states_BKW[:, 1:]
        features = self.image(states_BKW)
        if self.kind in ("mean", "learned_query"):  # one feature for all captions: W_O can be applied at once
            return Pooled(self.project(features))
        return features

    def text_features(self, states_TKW: Tensor) -> TextFeatures:
        return self.text(states_TKW)

    def project(self, mixed: Tensor) -> Tensor:
        """z = c · W_O (Llip, eq. 3), over the last axis."""
        assert self.out_proj is not None, f"a {self.kind} head mixes nothing"
        return mixed @ self.out_proj
