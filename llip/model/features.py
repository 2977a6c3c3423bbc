"""Features, which the towers give and the pair scores take: tuples of tensors whose first axis is the batch.

Axes: B images or captions · M heads · K tokens · E width of a head · D = M·E width of the compared space.

| head | image side | text side |
| --- | --- | --- |
| class_token, register, mean, learned_query | Pooled | Pooled |
| text_query (Llip) | Mixture | Query |
| image_query | Query | Mixture |
"""

from collections.abc import Sequence
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor


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
