"""The objectives as the paper writes them: every contextual feature formed, all under autograd. The reference."""

import itertools
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from llip.config import Head
from llip.model.features import ImageFeatures, Mixture, Pooled, Query, TextFeatures
from llip.pairs.distillation import Teacher


def scores(images: ImageFeatures, texts: TextFeatures, *, out_proj_DD: Tensor | None, temperature: float) -> Tensor:
    match images, texts:
        case Pooled(), Pooled():
            return F.normalize(images.vector_BD, dim=-1) @ F.normalize(texts.vector_BD, dim=-1).T
        case Mixture(), Query():
            logit_BTMK = torch.einsum("bmke,tme->btmk", images.key_BMKE, texts.query_BME) / temperature
            mixed_BTME = torch.einsum("btmk,bmke->btme", logit_BTMK.softmax(dim=-1), images.value_BMKE)
            assert out_proj_DD is not None
            feature_BTD = mixed_BTME.flatten(2) @ out_proj_DD
            return (F.normalize(feature_BTD, dim=-1) * F.normalize(texts.target_BD, dim=-1)).sum(dim=-1)
        case Query(), Mixture():
            return scores(texts, images, out_proj_DD=out_proj_DD, temperature=temperature).T
    raise TypeError(type(images), type(texts))


def loss(
    kind: str,
    score_BT: Tensor,
    log_scale: Tensor,
    bias: Tensor | None,
    captions: int,
    token_ids_TL: Tensor | None = None,
) -> Tensor:
    """Of B images with their C·B captions, caption-major; with token ids, equal captions are positives."""
    logit_BT = log_scale.exp() * score_BT + (0 if bias is None else bias)
    losses = []
    for caption, logit_BB in enumerate(logit_BT.chunk(captions, dim=1)):
        batch = len(logit_BB)
        positive_BB = torch.eye(batch, dtype=logit_BB.dtype)
        if token_ids_TL is not None:
            words = [tuple(row) for row in token_ids_TL.tolist()]
            for i, j in itertools.product(range(batch), range(batch)):
                positive_BB[i, j] = words[caption * batch + j] in [words[c * batch + i] for c in range(captions)]
        if kind == "sigmoid":
            losses.append(-F.logsigmoid((2 * positive_BB - 1) * logit_BB).sum() / batch)
        else:
            of_image = F.cross_entropy(logit_BB, positive_BB / positive_BB.sum(dim=1, keepdim=True))
            of_caption = F.cross_entropy(logit_BB.T, (positive_BB / positive_BB.sum(dim=0)).T)
            losses.append((of_image + of_caption) / 2)
    return torch.stack(losses).mean()


def divergence(score_BT: Tensor, log_scale: Tensor, teacher_BT: Tensor, teacher_scale: float, captions: int) -> Tensor:
    """Of a teacher's softmax over captions and over images from the student's, the mean of both and over captions."""
    found = []
    for own_BB, other_BB in zip(score_BT.chunk(captions, dim=1), teacher_BT.chunk(captions, dim=1), strict=True):
        for q, p in ((own_BB, other_BB), (own_BB.T, other_BB.T)):
            log_q, target = (log_scale.exp() * q).log_softmax(dim=1), (teacher_scale * p).softmax(dim=1)
            found.append(F.kl_div(log_q, target, reduction="batchmean"))
    return torch.stack(found).mean()


def teacher(images: int, captions: int, width: int = 6) -> Teacher:
    """Random embeddings, not of unit length."""
    generator = torch.Generator().manual_seed(7)
    image_BD, caption_TD = (
        torch.randn(count, width, generator=generator, dtype=torch.float64) for count in (images, captions * images)
    )
    return Teacher(image_BD, caption_TD, logit_scale=4.0)


def loss_with(
    teacher: Teacher, share: float, own: Tensor, score_BT: Tensor, log_scale: Tensor, captions: int
) -> Tensor:
    """A loss of which a share follows the teacher."""
    teacher_BT = F.normalize(teacher.image_BD, dim=-1) @ F.normalize(teacher.caption_TD, dim=-1).T
    return (1 - share) * own + share * divergence(score_BT, log_scale, teacher_BT, teacher.logit_scale, captions)


def repeated_captions(count: int, seed: int = 0) -> Tensor:
    """Token ids of captions of which many are equal, also of one image; two have a multiple of each other's ids."""
    choices = torch.tensor([[1, 2, 9, 0], [2, 4, 9, 0], [2, 1, 9, 0], [1, 2, 3, 9], [1, 9, 0, 0]])
    return choices[torch.randint(len(choices), (count,), generator=torch.Generator().manual_seed(seed))]


def features(
    kind: Head,
    images: int,
    texts: int,
    *,
    tokens: int = 4,
    heads: int = 2,
    width: int = 5,
    seed: int = 0,
    dtype: torch.dtype = torch.float64,
) -> tuple[ImageFeatures, TextFeatures, Tensor | None]:
    """Random features of both sides and a random W_O; leaves that want gradients."""
    generator = torch.Generator().manual_seed(seed)

    def random(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype).requires_grad_()

    def mixture(batch: int) -> Mixture:
        return Mixture(random(batch, heads, tokens, width), random(batch, heads, tokens, width))

    def query(batch: int) -> Query:
        return Query(random(batch, heads, width), random(batch, heads * width))

    dim = heads * width
    if kind == "text_query":
        return mixture(images), query(texts), random(dim, dim)
    if kind == "image_query":
        return query(images), mixture(texts), random(dim, dim)
    return Pooled(random(images, dim)), Pooled(random(texts, dim)), None


def errors(actual: Sequence[Tensor], expected: Sequence[Tensor]) -> float:
    """Largest difference of any pair of tensors, relative to the largest entry (but to 1 at least)."""
    return max(
        ((a.double() - e.double()).abs().max() / e.abs().max().clamp(min=1)).item()
        for a, e in zip(actual, expected, strict=True)
    )
