"""The contrastive losses over the global batch: softmax (CLIP) and sigmoid (SigLIP, Llip).

Captions are caption-major: row `c * B + i` is caption c of image i, the positive of image i and a negative of every
other image. The loss is the mean over c of the B×B losses.
"""

from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn import functional as F

from llip.config import ObjectiveConfig
from llip.model import scoring
from llip.model.features import ImageFeatures, TextFeatures


class LossOutput(NamedTuple):
    """`loss` is a scalar; `guard_hits` counts the pairs of this rank whose cosine had to be held at ±1."""

    loss: Tensor
    guard_hits: Tensor


class ScoreParameters(NamedTuple):
    """What turns features into logits: W_O and temperature of the mixture, log scale and bias of the cosines."""

    out_proj_DD: Tensor | None
    temperature: float
    logit_scale: Tensor
    logit_bias: Tensor | None


def score_parameters(model: Any) -> ScoreParameters:
    mixed = model.config.head.kind in ("text_query", "image_query")
    return ScoreParameters(
        out_proj_DD=model.head.out_proj if mixed else None,
        temperature=model.config.head.temperature,
        logit_scale=model.logit_scale,
        logit_bias=model.logit_bias,
    )


def contrastive_loss(
    model: Any,
    images: ImageFeatures,
    texts: TextFeatures,
    *,
    config: ObjectiveConfig,
    captions_per_image: int = 1,
    group: dist.ProcessGroup | None = None,
) -> LossOutput:
    """The loss of B images and their C·B captions; with `group`, of the batches of all its ranks (of equal size).

    The mean over ranks of `loss`, and of its gradients, is that of the whole batch on one process.
    """
    return loss_of_features(
        images, texts, score_parameters(model), config=config, captions_per_image=captions_per_image, group=group
    )


def loss_of_features(
    images: ImageFeatures,
    texts: TextFeatures,
    parameters: ScoreParameters,
    *,
    config: ObjectiveConfig,
    captions_per_image: int = 1,
    group: dist.ProcessGroup | None = None,
) -> LossOutput:
    """`contrastive_loss` with the parameters given one by one."""
    images, texts = _gathered(images, 1, group), _gathered(texts, captions_per_image, group)
    score_BT = scoring.pair_scores(
        images, texts, out_proj_DD=parameters.out_proj_DD, temperature=parameters.temperature, chunk=config.chunk
    )
    logit_BCB = (score_BT * parameters.logit_scale.exp()).unflatten(1, (captions_per_image, -1))
    if parameters.logit_bias is not None:
        logit_BCB = logit_BCB + parameters.logit_bias
    batch = logit_BCB.shape[0]
    eye_BB = torch.eye(batch, dtype=logit_BCB.dtype, device=logit_BCB.device)
    losses = []
    for logit_BB in logit_BCB.unbind(1):
        if config.loss == "sigmoid":
            losses.append(-F.logsigmoid(logit_BB * (2 * eye_BB - 1)).sum() / batch)
        else:
            label_B = torch.arange(batch, device=logit_BB.device)
            losses.append((F.cross_entropy(logit_BB, label_B) + F.cross_entropy(logit_BB.T, label_B)) / 2)
    return LossOutput(torch.stack(losses).mean(), torch.zeros((), dtype=torch.int64, device=score_BT.device))


def _gathered(features: Any, captions: int, group: dist.ProcessGroup | None) -> Any:
    if group is None:
        return features
    parts = []
    for tensor in features:
        ranks_RCB = _AllGather.apply(tensor, group).unflatten(1, (captions, -1))
        parts.append(ranks_RCB.transpose(0, 1).flatten(0, 2))
    return type(features)(*parts)


class _AllGather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, tensor: Tensor, group: dist.ProcessGroup) -> Tensor:
        ctx.group = group
        out = [torch.empty_like(tensor) for _ in range(dist.get_world_size(group))]
        dist.all_gather(out, tensor.contiguous(), group=group)
        return torch.stack(out)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        grad = grad.contiguous()
        dist.all_reduce(grad, group=ctx.group)
        return grad[dist.get_rank(ctx.group)], None
