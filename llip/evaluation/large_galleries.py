"""Retrieval in galleries too large for all pairs: an index finds candidates of every query, exact scores rank these.

A true item that is no candidate counts as missed, and a false one is not seen; `tests/benchmarks/bench_two_stage.py`
measures what that costs against what it saves. Mean average precision would need all ranks and is left out; `one_of_20`
is exact.

Axes: N images · T distinct captions · Q queries (either) · C candidates of a query · J pairs of an image and a caption
that it lists · D decisions · X captions of one.
"""

from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from llip.contrastive import ContrastiveModel
from llip.evaluation import two_stage
from llip.evaluation.encode import Arrays, from_arrays
from llip.evaluation.item_scores import ItemScores
from llip.evaluation.retrieval import Captions, OneOfMany, Retrieval, RetrievalTask, hit_scores
from llip.evaluation.sets.evaluation_set import EvaluationSet
from llip.model.features import Mixture, Query

ANCHORS = 512
"""Captions of the index: with as many, 400 of 64,000 images hold 99 % of the exact first ten."""


class LargeRetrievalTask(RetrievalTask):
    """Retrieval in one set, in two stages where a caption changes an image's feature; else exact, which is one product
    there."""

    def __init__(self, model: ContrastiveModel, data: EvaluationSet, candidates: int, seed: int = 0) -> None:
        super().__init__(model, data, seed)
        self.candidates = candidates

    def finish(self, arrays: Arrays) -> tuple[dict[str, ItemScores], Retrieval]:
        """All metrics, and the first images of every caption."""
        images = from_arrays(arrays, self.texts[0].device)
        if not (isinstance(images, Mixture) and isinstance(self.texts, Query)):
            return super().finish(arrays)
        ranked = rank(self.model, images, self.texts, self.captions, candidates=self.candidates, seed=self.seed)
        return ranked.item_scores, ranked


def rank(
    model: ContrastiveModel, images: Mixture, texts: Query, captions: Captions, *, candidates: int, seed: int = 0
) -> Retrieval:
    """Metrics from `candidates` images of every caption and as many captions of every image, at least ten."""
    drawn = np.random.default_rng(seed).permutation(len(captions.texts))[:ANCHORS]
    anchors = Query(*(tensor[torch.from_numpy(drawn).to(tensor.device)] for tensor in texts))
    index = two_stage.AnchorIndex(model, images, anchors, seed)
    count = len(images[0])
    listed_J = captions.image_J + captions.text_J * count

    image_TC, score_TC = _found(model, images, texts, index, candidates, "text_to_image")
    true_TC = np.isin(image_TC + count * np.arange(len(image_TC))[:, None], listed_J)
    text_NC, score_NC = _found(model, images, texts, index, candidates, "image_to_text")
    true_NC = np.isin(np.arange(count)[:, None] + count * text_NC, listed_J)
    positives_T = np.bincount(captions.text_J)
    positives_N = np.bincount(captions.image_J, minlength=count)
    choices = OneOfMany(captions, count, seed)
    choices.score_DX = _chosen(model, images, texts, choices)
    return Retrieval(
        hit_scores("text_to_image", _best(true_TC, score_TC), (positives_T, count - positives_T))
        | hit_scores("image_to_text", _best(true_NC, score_NC), (positives_N, len(captions.texts) - positives_N))
        | choices.scores(),
        captions,
        image_TC[:, :5],
        _average_precision(true_TC, positives_T),
    )


def _found(
    model: ContrastiveModel,
    images: Mixture,
    texts: Query,
    index: two_stage.AnchorIndex,
    candidates: int,
    direction: Literal["text_to_image", "image_to_text"],
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Candidates of every query by falling score, and these scores, both [Q, C]."""
    found = two_stage.search(model, images, texts, index, candidates=candidates, direction=direction)
    item_QC, score_QC = (tensor.cpu().numpy() for tensor in found)
    return item_QC, score_QC


def _best(true_QC: NDArray[np.bool_], score_QC: NDArray[np.float32]) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any]]:
    """Arguments of `hit_metrics` for every query. Where no candidate is true, all of them stand above."""
    best_Q1 = np.where(true_QC, score_QC, -np.inf).max(axis=1, keepdims=True)
    tied_QC = score_QC == best_Q1
    return (
        ((score_QC > best_Q1) & ~true_QC).sum(axis=1),
        (tied_QC & true_QC).sum(axis=1),
        (tied_QC & ~true_QC).sum(axis=1),
    )


def _average_precision(true_QC: NDArray[np.bool_], positives_Q: NDArray[np.int64]) -> NDArray[np.float64]:
    """A lower bound: true items beyond the candidates add nothing."""
    precision_QC = true_QC.cumsum(axis=1) / np.arange(1, true_QC.shape[1] + 1)
    return (precision_QC * true_QC).sum(axis=1) / positives_Q


def _chosen(model: ContrastiveModel, images: Mixture, texts: Query, choices: OneOfMany) -> NDArray[np.float32]:
    """Exact scores [D, X] of the images of decisions with their captions."""
    text_DX = choices.candidate_DX
    image_DX = np.broadcast_to(choices.image_D1, text_DX.shape)
    score_DX = np.full(text_DX.shape, -np.inf, np.float32)
    given_DX = text_DX >= 0
    pairs = (torch.from_numpy(x[given_DX]).to(texts[0].device) for x in (image_DX, text_DX))
    score_DX[given_DX] = two_stage.pair_list_scores(model, images, texts, *pairs).cpu().numpy()
    return score_DX
