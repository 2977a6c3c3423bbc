"""The objectives as the paper writes them: every contextual feature formed, everything under autograd. The reference."""

import torch
from torch import Tensor
from torch.nn import functional as F

from llip.model.features import Mixture, Pooled, Query


def scores(images, texts, *, out_proj_DD: Tensor | None, temperature: float) -> Tensor:
    match images, texts:
        case Pooled(), Pooled():
            return F.normalize(images.vector_BD, dim=-1) @ F.normalize(texts.vector_BD, dim=-1).T
        case Mixture(), Query():
            logit_BTMK = torch.einsum("bmke,tme->btmk", images.key_BMKE, texts.query_BME) / temperature
            mixed_BTME = torch.einsum("btmk,bmke->btme", logit_BTMK.softmax(dim=-1), images.value_BMKE)
            feature_BTD = mixed_BTME.flatten(2) @ out_proj_DD
            return (F.normalize(feature_BTD, dim=-1) * F.normalize(texts.target_BD, dim=-1)).sum(dim=-1)
        case Query(), Mixture():
            return scores(texts, images, out_proj_DD=out_proj_DD, temperature=temperature).T


def loss(kind: str, score_BT: Tensor, scale: Tensor, bias: Tensor | None, captions: int) -> Tensor:
    logit_BT = scale.exp() * score_BT + (0 if bias is None else bias)
    losses = []
    for logit_BB in logit_BT.chunk(captions, dim=1):
        batch = len(logit_BB)
        if kind == "sigmoid":
            sign_BB = 2 * torch.eye(batch, dtype=logit_BB.dtype) - 1
            losses.append(-F.logsigmoid(sign_BB * logit_BB).sum() / batch)
        else:
            label_B = torch.arange(batch)
            losses.append((F.cross_entropy(logit_BB, label_B) + F.cross_entropy(logit_BB.T, label_B)) / 2)
    return torch.stack(losses).mean()
