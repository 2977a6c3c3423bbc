"""Context analysis: given a caption, is the image feature closer to that caption than the feature given another one?

For an image i with two true captions A and B, a decision is right where `ẑ(i|A)·t̂_A > ẑ(i|B)·t̂_A`, and likewise with
A and B exchanged. A model whose image feature does not depend on the caption has nothing to decide.
"""

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from torch import Tensor

from llip.contrastive import ContrastiveModel
from llip.evaluation.encode import Arrays, ImageTask, encode_texts, scores
from llip.evaluation.item_scores import ItemScores
from llip.evaluation.sets.evaluation_set import EvaluationSet
from llip.model.features import Mixture, Query, batch_slice, mixing_weights


def applies(model: ContrastiveModel) -> bool:
    """Whether the image feature depends on the caption."""
    return model.config.head.kind == "text_query"


COSINES = ("a_given_a", "a_given_b", "b_given_b", "b_given_a")


class CompareContexts:
    """The job on a batch: cosines with caption A given A and given B, and with caption B given B and given A.

    Besides, `weights` [B, 2, M, K]: the mixing weights of each image given A and given B.
    """

    def __call__(self, model: ContrastiveModel, pixels_BCHW: Tensor, rows: pa.Table) -> Arrays:
        count, images = rows.num_rows, model.encode_image(pixels_BCHW)
        texts = encode_texts(model, rows["caption_a"].to_pylist() + rows["caption_b"].to_pylist())
        assert isinstance(images, Mixture) and isinstance(texts, Query)
        query_B2ME = torch.stack(texts.query_BME.split(count), dim=1)
        target_B2D = torch.stack(texts.target_BD.split(count), dim=1)
        # A query and a target of different captions make the feature given one caption compared with the other.
        crossed = Query(query_B2ME[:, [0, 1, 1, 0]].flatten(0, 1), target_B2D[:, [0, 0, 1, 1]].flatten(0, 1))
        score_B4 = torch.cat(
            [
                scores(model, batch_slice(images, slice(i, i + 1)), batch_slice(crossed, slice(4 * i, 4 * i + 4)))
                for i in range(count)
            ]
        )
        weight_B2MK = mixing_weights(images, query_B2ME, model.config.mixing_temperature)
        cosines = dict(zip(COSINES, score_B4.T.cpu().numpy(), strict=True))
        return cosines | {"weights": weight_B2MK.cpu().numpy()}


class ContextAnalysis:
    """The context analysis of one set."""

    def __init__(self, model: ContrastiveModel, data: EvaluationSet) -> None:
        self.task = ImageTask(data.name, data.table.select(["image", "caption_a", "caption_b"]), CompareContexts())

    def finish(self, arrays: Arrays) -> tuple[dict[str, ItemScores], Arrays]:
        """Share of right decisions, and the arrays of `CompareContexts`."""
        return {"context_accuracy": accuracy(arrays)}, arrays


def accuracy(outcome: Arrays) -> ItemScores:
    """Share of right decisions, two an image; a tie is half right."""
    margin = np.concatenate([outcome["a_given_a"] - outcome["a_given_b"], outcome["b_given_b"] - outcome["b_given_a"]])
    image = np.arange(len(margin)) % len(outcome["a_given_a"])
    return ItemScores(score_I=(margin > 0) + 0.5 * (margin == 0), chance=0.5, units={"images": image})


def entropy(weight_N2MK: NDArray[np.floating]) -> NDArray[np.float64]:
    """Entropy of each head's mixing weights, as a share of that of uniform ones: [M]; 0 where there is one token."""
    weight = weight_N2MK.astype(np.float64)
    nats_N2M = -(weight * np.log(np.maximum(weight, 1e-30))).sum(axis=-1)
    return np.asarray(nats_N2M.mean(axis=(0, 1)) / np.log(max(2, weight.shape[-1])))


def shift(weight_N2MK: NDArray[np.floating]) -> NDArray[np.float64]:
    """Mixing weight that moves to other tokens when the caption changes, per head: [M], total variation in [0, 1]."""
    given_a, given_b = weight_N2MK[:, 0], weight_N2MK[:, 1]
    return np.asarray((np.abs(given_a - given_b).sum(axis=-1) / 2).mean(axis=0), dtype=np.float64)
