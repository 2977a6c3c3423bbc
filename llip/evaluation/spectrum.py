"""Spectrum of the image features (Llip, figure 5): how many directions the vision tower's output tokens use.

The tokens of all images are stacked along the batch; the singular values of their covariance, in descending order, tell
how its variance spreads over directions. Sums are taken batch by batch, so any number of images fits.
"""

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from torch import Tensor

from llip.contrastive import ContrastiveModel
from llip.evaluation.encode import Arrays, ImageTask, Runner

IMAGES = 5000
"""Images of a spectrum, as many as the paper takes."""


class Moments:
    """The job that returns the sums of one batch of images over its tokens: one row a batch."""

    def __call__(self, model: ContrastiveModel, pixels_BCHW: Tensor, rows: pa.Table) -> Arrays:
        token_NW = model.vision(pixels_BCHW).flatten(0, 1).double()
        return {
            "count": np.array([len(token_NW)]),
            "sum": token_NW.sum(dim=0)[None].cpu().numpy(),
            "outer": (token_NW.T @ token_NW)[None].cpu().numpy(),
        }


def spectrum(name: str, images: pa.Table, run: Runner) -> NDArray[np.float64]:
    """Singular values [width] of the covariance of the output tokens of the first 5,000 images, largest first."""
    (moments,) = run([ImageTask(name, images.select(["image"]).slice(0, IMAGES), Moments())])
    count = moments["count"].sum()
    mean_W = moments["sum"].sum(axis=0) / count
    covariance_WW = moments["outer"].sum(axis=0) / count - np.outer(mean_W, mean_W)
    return np.linalg.svd(covariance_WW, compute_uv=False)


def effective_rank(value_W: NDArray[np.float64]) -> float:
    """Exponential of the entropy of the normalised singular values (Roy and Vetterli, 2007): 1 to width."""
    share = value_W / value_W.sum()
    share = share[share > 0]
    return float(np.exp(-(share * np.log(share)).sum()))
