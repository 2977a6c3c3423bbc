"""Retrieval from large galleries in two stages: an index of one vector an image finds candidates, exact scores rank
them.

The index holds each image's exact scores with a few anchor captions, a CUR decomposition of the score matrix (Yadav
et al., EMNLP 2022): a query is scored with a few anchor images only, and the combination of anchor captions that gives
these scores is taken for all images. It finds nearly what exact scores find.

Axes: N images · T captions · Q queries · C candidates of a query · A width of the index · H anchor images ·
G images at work · L captions of each of these.
"""

from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import normalize

from llip.contrastive import ContrastiveModel
from llip.evaluation.encode import scores
from llip.model.features import Mixture, Query, mix

BLOCK_SCORES = 1 << 24
"""Scores of the index held at once (64 MB)."""
BLOCK_PAIRS = 1 << 13
"""Pairs of the second stage at work at once."""
SMALLEST = 1e-3
"""Singular values of the anchors' scores below this share of the largest are noise."""


class AnchorIndex:
    """One vector an image and one a caption, whose inner product stands for their score.

    The vector of an image is its exact scores with the anchor captions, which are to be like those that are searched
    with. Twice as many images as anchor captions, drawn by seed, are the anchor images.
    """

    def __init__(self, model: ContrastiveModel, images: Mixture, anchors: Query, seed: int = 0) -> None:
        self.model = model
        self.vector_NA = scores(model, images, anchors)
        drawn = torch.randperm(len(self.vector_NA), generator=torch.Generator().manual_seed(seed))
        drawn = drawn[: 2 * len(anchors[0])].to(self.vector_NA.device)
        self.images = Mixture(*(tensor[drawn] for tensor in images))
        self.from_scores_HA = torch.linalg.pinv(self.vector_NA[drawn].double(), rtol=SMALLEST).float().T

    def caption_vectors(self, texts: Query) -> Tensor:
        """[T, A]"""
        return scores(self.model, self.images, texts).T @ self.from_scores_HA


def search(
    model: ContrastiveModel,
    images: Mixture,
    texts: Query,
    index: AnchorIndex,
    *,
    candidates: int,
    direction: Literal["text_to_image", "image_to_text"] = "text_to_image",
) -> tuple[Tensor, Tensor]:
    """For every query the best `candidates` items of an index of the images, `[Q, C]`, by descending exact cosine, and
    these cosines. Items beyond the candidates are not found, however they score.
    """
    query_QA, item_NA = index.caption_vectors(texts), index.vector_NA
    if direction == "image_to_text":
        query_QA, item_NA = item_NA, query_QA
    item_QC = _nearest(query_QA, item_NA, candidates)
    query_QC = torch.arange(len(item_QC), device=item_QC.device)[:, None].expand_as(item_QC)
    image_QC, text_QC = (item_QC, query_QC) if direction == "text_to_image" else (query_QC, item_QC)
    score_QC = pair_list_scores(model, images, texts, image_QC.flatten(), text_QC.flatten()).view(item_QC.shape)
    score_QC, order_QC = score_QC.sort(dim=1, descending=True)
    return item_QC.gather(1, order_QC), score_QC


def _nearest(query_QA: Tensor, item_NA: Tensor, count: int) -> Tensor:
    at_once = max(1, BLOCK_SCORES // len(item_NA))
    count = min(count, len(item_NA))
    return torch.cat([(block @ item_NA.T).topk(count, dim=1).indices for block in query_QA.split(at_once)])


def pair_list_scores(model: ContrastiveModel, images: Mixture, texts: Query, image_P: Tensor, text_P: Tensor) -> Tensor:
    """Exact cosines `[P]` of listed pairs of an image and a caption.

    Pairs are gathered by image, so that its tokens are read once; images with lists of similar length work together.
    """
    target_TD = normalize(texts.target_BD, dim=-1)
    order_P = image_P.argsort(stable=True)
    present, length = image_P[order_P].unique_consecutive(return_counts=True)
    start = length.cumsum(0) - length
    by_length = length.argsort()
    score_P = target_TD.new_empty(len(image_P))
    for group in _groups(length[by_length].tolist()):
        chosen = by_length[group]
        place_L = torch.arange(int(length[chosen[-1]]), device=length.device)
        # shorter lists repeat their last pair
        listed_GL = order_P[start[chosen, None] + torch.minimum(place_L, length[chosen, None] - 1)]
        text_GL = text_P[listed_GL]
        mixture = Mixture(*(tensor[present[chosen]] for tensor in images))
        mixed_GLD = mix(mixture, texts.query_BME[text_GL], model.config.mixing_temperature)
        feature_GLD = normalize(model.head.project(mixed_GLD), dim=-1)
        score_P[listed_GL] = (feature_GLD * target_TD[text_GL]).sum(dim=-1)
    return score_P


def _groups(ascending: list[int]) -> list[slice]:
    """Consecutive spans of lists with at most BLOCK_PAIRS pairs once all are as long as the last; one list at least."""
    spans, start = [], 0
    for stop, following in enumerate([*ascending[1:], None], 1):
        if following is None or (stop + 1 - start) * following > BLOCK_PAIRS:
            spans.append(slice(start, stop))
            start = stop
    return spans
