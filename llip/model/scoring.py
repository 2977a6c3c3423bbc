"""Pair scores: the cosine of every image with every caption, whatever the head.

Axes: B images · T captions · M heads · K tokens · E width of a head · D = M·E.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from llip.model.features import ImageFeatures, Mixture, Pooled, Query, TextFeatures


def pair_scores(
    images: ImageFeatures,
    texts: TextFeatures,
    *,
    out_proj_DD: Tensor | None,
    temperature: float,
    chunk: int = 1024,
) -> Tensor:
    """Cosines `[B, T]` of every image with every caption, before scale and bias (Llip, section 3.2).

    `out_proj_DD` (W_O, applied as `z = c @ W_O`) and `temperature` belong to mixtures; pooled features need neither.
    """
    match images, texts:
        case Pooled(image_BD), Pooled(text_TD):
            return F.normalize(image_BD, dim=-1) @ F.normalize(text_TD, dim=-1).T
        case Mixture(), Query():
            assert out_proj_DD is not None
            blocks = zip(texts.query_BME.split(chunk), texts.target_BD.split(chunk), strict=True)
            return torch.cat([_mixture_scores(images, Query(q, t), out_proj_DD, temperature) for q, t in blocks], dim=1)
        case Query(), Mixture():
            return pair_scores(texts, images, out_proj_DD=out_proj_DD, temperature=temperature, chunk=chunk).T
        case _:
            raise ValueError(f"{type(images).__name__} images cannot be compared with {type(texts).__name__} captions")


def _mixture_scores(mixture: Mixture, query: Query, out_proj_DD: Tensor, temperature: float) -> Tensor:
    weight_BTMK = torch.softmax(torch.einsum("bmke,tme->btmk", mixture.key_BMKE, query.query_BME) / temperature, dim=-1)
    mixed_BTD = torch.einsum("btmk,bmke->btme", weight_BTMK, mixture.value_BMKE).flatten(2) @ out_proj_DD
    return torch.einsum("btd,td->bt", F.normalize(mixed_BTD, dim=-1), F.normalize(query.target_BD, dim=-1))
