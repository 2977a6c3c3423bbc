"""Context analysis: given a caption, is the image feature closer to that caption than the feature given another one?

For an image i with two true captions A and B, a decision is right where `ẑ(i|A)·t̂_A > ẑ(i|B)·t̂_A`, and likewise with
A and B exchanged. A model whose image feature does not depend on the caption has nothing to decide.
"""

import numpy as np
import pyarrow as pa
import torch

from llip.data.evaluation_set import EvaluationSet
from llip.evaluation.encode import Arrays, ImageTask, encode_texts, scores
from llip.evaluation.metrics import Metric
from llip.model.build import ContrastiveModel
from llip.model.features import ImageFeatures, Query, batch_slice


def applies(model: ContrastiveModel) -> bool:
    """Whether the image feature depends on the caption."""
    return model.config.head.kind == "text_query"


class CompareContexts:
    """The job on a batch: cosines with caption A given A and given B, and with caption B given B and given A."""

    def __call__(self, model: ContrastiveModel, images: ImageFeatures, rows: pa.Table) -> Arrays:
        count = rows.num_rows
        texts = encode_texts(model, rows["caption_a"].to_pylist() + rows["caption_b"].to_pylist())
        assert isinstance(texts, Query)
        query_a, query_b = texts.query_BME.split(count)
        target_a, target_b = texts.target_BD.split(count)
        # A query and a target of different captions make the feature given one caption compared with the other.
        crossed = Query(
            torch.stack([query_a, query_b, query_b, query_a], dim=1).flatten(0, 1),
            torch.stack([target_a, target_a, target_b, target_b], dim=1).flatten(0, 1),
        )
        score_B4 = torch.cat(
            [
                scores(model, batch_slice(images, slice(i, i + 1)), batch_slice(crossed, slice(4 * i, 4 * i + 4)))
                for i in range(count)
            ]
        )
        return dict(zip(("a_given_a", "a_given_b", "b_given_b", "b_given_a"), score_B4.T.cpu().numpy(), strict=True))


class ContextAnalysis:
    """The context analysis of one set."""

    def __init__(self, model: ContrastiveModel, data: EvaluationSet) -> None:
        self.task = ImageTask(data.name, data.table.select(["image", "caption_a", "caption_b"]), CompareContexts())

    def finish(self, arrays: Arrays) -> tuple[dict[str, Metric], Arrays]:
        """Share of right decisions, and the four cosines of each image."""
        return {"context_accuracy": Metric(accuracy(arrays), 0.5)}, arrays


def accuracy(outcome: Arrays) -> float:
    """Share of right decisions; a tie is half right."""
    margin = np.concatenate([outcome["a_given_a"] - outcome["a_given_b"], outcome["b_given_b"] - outcome["b_given_a"]])
    return float(((margin > 0) + 0.5 * (margin == 0)).mean())
