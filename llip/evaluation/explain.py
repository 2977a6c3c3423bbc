"""Effect of captions on a model's view of one image: mixing weights by head and token, and the features they give.

Axes: C captions · M heads · K tokens.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn.functional import normalize

from llip.contrastive import ContrastiveModel
from llip.evaluation.encode import decode, encode_texts, model_input
from llip.model.features import Mixture, Query, mixing_weights


@dataclass(frozen=True)
class Explanation:
    """One image and some captions."""

    captions: tuple[str, ...]
    weight_CMK: NDArray[np.float32]
    """Mixing weights of the image's tokens given each caption; those of a head sum to 1."""
    cosine_CC: NDArray[np.float32]
    """Cosine of the image feature given the row's caption with the target of the column's. The context analysis of the
    paper: in a column, the diagonal should be the largest."""


@torch.inference_mode()
def explain(model: ContrastiveModel, image: bytes, captions: Sequence[str], where: str = "image") -> Explanation:
    """Raises ValueError for a model whose captions mix nothing, for no captions, and for an image that is broken."""
    if model.config.head.kind != "text_query":
        raise ValueError(f"captions change nothing in a {model.config.head.kind} model; a text_query head is needed")
    if not captions:
        raise ValueError("captions are needed: at least one, two to compare")
    pixels = decode(image, model.config.vision.image_size, where, model.config.preprocessing)[None]
    images, texts = model.encode_image(model_input(model, pixels)), encode_texts(model, captions)
    assert isinstance(images, Mixture) and isinstance(texts, Query)
    weight_CMK = mixing_weights(images, texts.query_BME, model.config.mixing_temperature)[0]
    feature_CD = model.contextual_features(images, texts)[0]
    cosine_CC = feature_CD @ normalize(texts.target_BD, dim=-1).T
    return Explanation(tuple(captions), weight_CMK.cpu().numpy(), cosine_CC.cpu().numpy())
