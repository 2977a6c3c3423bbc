"""Linear probe: logistic regression on frozen image features, by CLIP's protocol (Radford et al. 2021, appendix A.3).

The features are the vision tower's mixture tokens without any context, averaged: the uniform mixture, and the class
token where there is one. L-BFGS with at most 1,000 iterations; the strength of the L2 penalty is searched on a
validation split: seven powers of ten, then ever finer steps around the best, to eight a decade. The regression of the
best strength is fitted once more to training and validation images together.
"""

import math
import warnings
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import train_test_split
from torch import Tensor

from llip.contrastive import ContrastiveModel
from llip.evaluation.encode import Arrays, ImageTask, Runner
from llip.evaluation.metrics import Metric
from llip.evaluation.sets.evaluation_set import EvaluationSet

COARSE = tuple(10.0**e for e in range(-6, 7, 2))
"""Values of C, scikit-learn's inverse strength."""
FINEST = 1 / 8
"""Smallest step of the search, decades."""


class MeanToken:
    """The job that returns the mean of the vision tower's output tokens, [B, width]."""

    def __call__(self, model: ContrastiveModel, pixels_BCHW: Tensor, rows: pa.Table) -> Arrays:
        return {"feature": model.vision(pixels_BCHW).mean(dim=1).float().cpu().numpy()}


@dataclass(frozen=True)
class LinearProbe:
    """A fitted probe and how it did."""

    metrics: dict[str, Metric]
    """`linear_probe_top1` and `linear_probe_mean_per_class` on the test images."""
    strength: float
    """The chosen C."""
    validation: dict[float, float]
    """Validation accuracy of every C that was tried."""


def evaluate(train: EvaluationSet, test: EvaluationSet, run: Runner, *, validation_share: float = 0.2) -> LinearProbe:
    """Probe a set's classes.

    Raises ValueError, before any work, for sets of other classes than each other's, for one class, and for a class with
    one image.
    """
    if train.task != "classification" or train.classes != test.classes:
        raise ValueError(f"sets {train.name} and {test.name} have to be classification sets of the same classes")
    train_y, test_y = (data.table["label"].to_numpy() for data in (train, test))
    images_C = np.bincount(train_y, minlength=len(train.classes))
    if len(few := np.flatnonzero(images_C == 1)):
        raise ValueError(
            f"set {train.name}: class {train.classes[few[0]]} has one image, as {len(few)} of {len(images_C)} classes "
            "have; validation needs two of each"
        )
    if (images_C > 0).sum() < 2:
        raise ValueError(f"set {train.name}: all images are of one class; a probe needs two classes at least")
    tasks = [ImageTask(data.name, data.table.select(["image"]), MeanToken()) for data in (train, test)]
    train_x, test_x = (arrays["feature"] for arrays in run(tasks))
    return fit(train_x, train_y, test_x, test_y, validation_share=validation_share)


def fit(
    train_x: NDArray[np.floating],
    train_y: NDArray[np.integer],
    test_x: NDArray[np.floating],
    test_y: NDArray[np.integer],
    *,
    validation_share: float = 0.2,
) -> LinearProbe:
    """Search the strength on a stratified part of the training samples, then fit to all of them.

    The part has at least as many samples as there are classes: more than its share where classes have fewer than five.
    """
    held = max(math.ceil(validation_share * len(train_y)), len(np.unique(train_y)))
    fit_x, held_x, fit_y, held_y = train_test_split(train_x, train_y, test_size=held, stratify=train_y, random_state=0)
    validation: dict[float, float] = {}

    def accuracy(strength: float) -> float:
        if strength not in validation:
            validation[strength] = float(_regression(strength, fit_x, fit_y).score(held_x, held_y))
        return validation[strength]

    best = max(COARSE, key=accuracy)
    decades = 1.0
    while decades >= FINEST:
        best = max((best, best * 10**-decades, best * 10**decades), key=accuracy)
        decades /= 2
    right = _regression(best, train_x, train_y).predict(test_x) == test_y
    present = np.unique(test_y)
    chance = 1 / len(np.unique(train_y))
    metrics = {
        "linear_probe_top1": Metric(float(right.mean()), chance),
        "linear_probe_mean_per_class": Metric(float(np.mean([right[test_y == c].mean() for c in present])), chance),
    }
    return LinearProbe(metrics, best, dict(sorted(validation.items())))


def _regression(strength: float, x: NDArray[np.floating], y: NDArray[np.integer]) -> LogisticRegression:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # the protocol stops at 1,000 iterations, wherever that is
        return LogisticRegression(C=strength, max_iter=1000).fit(x, y)
