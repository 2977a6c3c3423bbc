"""Zero-shot classification by Llip's protocol (section 4 and appendix): every image is scored with every class.

The target of a class is the mean over the templates of the *normalised* text features, normalised again. Its query is
the mean of the *raw* queries. So there is one contextualisation for an image and a class, whatever the number of
templates.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from scipy.stats import binom
from torch import Tensor
from torch.nn.functional import normalize

from llip.contrastive import ContrastiveModel
from llip.evaluation.encode import Arrays, ImageTask, encode_texts, scores
from llip.evaluation.item_scores import ItemScores
from llip.evaluation.metrics import hit_at_k
from llip.evaluation.sets.evaluation_set import EvaluationSet
from llip.model.features import Message, Mixture, Pooled, Query, TextFeatures, concatenate

PROMPTS_AT_ONCE = 8192
"""Prompts whose features are held before they are averaged."""


def zero_shot_classifier(model: ContrastiveModel, classes: Sequence[str], templates: Sequence[str]) -> TextFeatures:
    """One text feature for each class, averaged over its prompts."""
    at_once = max(1, PROMPTS_AT_ONCE // len(templates))
    parts = []
    for start in range(0, len(classes), at_once):
        names = classes[start : start + at_once]
        prompts = [template.replace("{}", name) for name in names for template in templates]
        parts.append(average_templates(encode_texts(model, prompts), len(templates)))
    return concatenate(parts)


def average_templates(prompts: TextFeatures, templates: int) -> TextFeatures:
    """Features of classes from those of their prompts, class by class. Targets are averaged normalised, queries raw.

    Tokens on the text side, to which no paper gives a protocol, are averaged raw like queries, token by token.
    """

    def mean(tensor: Tensor) -> Tensor:
        return tensor.unflatten(0, (-1, templates)).mean(dim=1)

    match prompts:
        case Pooled(vector_BD):
            return Pooled(normalize(mean(normalize(vector_BD, dim=-1)), dim=-1))
        case Query(query_BME, target_BD):
            return Query(mean(query_BME), normalize(mean(normalize(target_BD, dim=-1)), dim=-1))
        case Mixture(key_BMKE, value_BMKE):
            return Mixture(mean(key_BMKE), mean(value_BMKE))


@dataclass(frozen=True)
class Classify:
    """The job on a batch: how many classes score above an image's label, how many tie with it, which is first."""

    classes: TextFeatures | Message
    """Features of the classes, on the CPU: the job may run in another process."""

    def __call__(self, model: ContrastiveModel, pixels_BCHW: Tensor, rows: pa.Table) -> Arrays:
        classes = type(self.classes)(*(tensor.to(pixels_BCHW.device) for tensor in self.classes))
        return ranks(scores(model, model.encode_image(pixels_BCHW), classes), rows)


def ranks(score_BC: Tensor, rows: pa.Table) -> Arrays:
    """Ranks of the labels of images among the scores of all classes."""
    label_B1 = torch.tensor(rows["label"].to_pylist(), device=score_BC.device)[:, None]
    of_label_B1 = score_BC.gather(1, label_B1)
    return {
        "above": (score_BC > of_label_B1).sum(dim=1).cpu().numpy(),
        "tied": (score_BC == of_label_B1).sum(dim=1).cpu().numpy(),
        "predicted": score_BC.argmax(dim=1).cpu().numpy(),
    }


class ZeroShot:
    """Zero-shot classification of one set."""

    def __init__(self, model: ContrastiveModel, data: EvaluationSet) -> None:
        self.data = data
        features = model.prepare_texts(zero_shot_classifier(model, data.classes, data.templates))
        job = Classify(type(features)(*(tensor.cpu() for tensor in features)))
        self.task = ImageTask(data.name, data.table.select(["image", "label"]), job)

    def finish(self, arrays: Arrays) -> tuple[dict[str, ItemScores], Arrays]:
        """Top-1, top-5 and mean per-class accuracy, where there are groups those of the worst one, macro F1, and the
        arrays of `Classify`."""
        label_N = self.data.table["label"].to_numpy()
        group_N = self.data.table["group"].to_numpy() if "group" in self.data.table.column_names else None
        classes = len(self.data.classes)
        found = accuracies(arrays["above"], arrays["tied"], label_N, classes, group_N=group_N)
        return found | {"macro_f1": macro_f1(label_N, arrays["predicted"], classes)}, arrays


def accuracies(
    above_N: NDArray[np.integer],
    tied_N: NDArray[np.integer],
    label_N: NDArray[np.integer],
    classes: int,
    *,
    group_N: NDArray[np.integer] | None = None,
) -> dict[str, ItemScores]:
    """Accuracies of N images from how their label ranks. The mean per class is over the classes that have images."""
    top1_N, top5_N = (hit_at_k(above_N, 1, tied_N - 1, k) for k in (1, 5))
    units = {"images": np.arange(len(label_N))}
    found = {
        "top1": ItemScores(score_I=top1_N, chance=1 / classes, units=units),
        "top5": ItemScores(score_I=top5_N, chance=min(5, classes) / classes, units=units),
        "mean_per_class": ItemScores(
            score_I=top1_N, chance=1 / classes, units=units, stratum_I=label_N.astype(np.int64)
        ),
    }
    for name in ("top1", "top5") if group_N is not None else ():
        assert group_N is not None
        found[f"worst_group_{name}"] = replace(found[name], stratum_I=group_N.astype(np.int64), worst=True)
    return found


def macro_f1(label_N: NDArray[np.integer], predicted_N: NDArray[np.integer], classes: int) -> ItemScores:
    """Macro F1 over the classes that have images, DataComp's metric of iWildCam. The first of several classes with the
    highest score is the predicted one."""
    return ItemScores(
        score_I=(label_N == predicted_N).astype(np.float64),
        chance=drawn_f1(label_N, classes),
        units={"images": np.arange(len(label_N))},
        stratum_I=label_N.astype(np.int64),
        predicted_I=predicted_N.astype(np.int64),
    )


def drawn_f1(label_N: NDArray[np.integer], classes: int) -> float:
    """Expected macro F1 where the class of every image is drawn, all classes alike.

    A class that n of N images have is drawn for P of them, which is binomial; `P n / N` of these are right on average.
    """
    images = len(label_N)
    given_P = np.arange(1, images + 1)
    share_P = binom.pmf(given_P, images, 1 / classes)
    given_P, share_P = given_P[share_P > 0], share_P[share_P > 0]
    of_class, times = np.unique(np.unique(label_N, return_counts=True)[1], return_counts=True)
    found = [2 * n / images * float((share_P * given_P / (n + given_P)).sum()) for n in of_class.tolist()]
    return float(np.average(found, weights=times))
