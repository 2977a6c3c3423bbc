"""One cue, several images, some of them associated with it: WinoGAViL (Bitton et al., NeurIPS 2022).

An instance has a cue and n images, k of them associated with it. The model chooses the k images that score highest
with the cue. `jaccard` is the mean over instances of the Jaccard index of the chosen and the associated images: hits
over 2k - hits. `jaccard_of_10_and_more` is the mean over the instances with ten images and more, the main metric of
DataComp (Gadre et al., NeurIPS 2023). Ties count as a random order of what ties. Chance is a random choice of k images.
Instances with the same images are one unit of the intervals.

Axes: N images · W cues of an image, fewer are padded · I instances · H numbers of hits.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from scipy.stats import hypergeom

from llip.contrastive import ContrastiveModel
from llip.evaluation.choice import ScoreChoices
from llip.evaluation.encode import Arrays, ImageTask
from llip.evaluation.item_scores import ItemScores
from llip.evaluation.sets.evaluation_set import EvaluationSet

MANY = 10
"""Images of the instances that have a metric of their own."""


@dataclass(frozen=True)
class Instance:
    """A cue and the images that are dealt with it."""

    cue: str
    rows: NDArray[np.int64]
    """Its images, by their rows in the set."""
    places: NDArray[np.int64]
    """Place of the cue in the list of each of these rows."""
    true: NDArray[np.bool_]
    """Whether each of them is associated with the cue."""


def instances(table: pa.Table) -> list[Instance]:
    """The instances of a set, by their numbers."""
    dealt: dict[int, list[tuple[str, int, int, bool]]] = {}
    columns = (table[name].to_pylist() for name in ("captions", "instances", "true"))
    for row, listed in enumerate(zip(*columns, strict=True)):
        for place, (cue, number, true) in enumerate(zip(*listed, strict=True)):
            dealt.setdefault(number, []).append((cue, row, place, true))
    found = []
    for _, images in sorted(dealt.items()):
        cues, rows, places, true = zip(*images, strict=True)
        found.append(Instance(cues[0], np.array(rows), np.array(places), np.array(true)))
    return found


class Association:
    """The associations of one set."""

    def __init__(self, model: ContrastiveModel, data: EvaluationSet) -> None:
        self.data = data
        width = max(map(len, data.table["captions"].to_pylist()))
        self.task = ImageTask(data.name, data.table.select(["image", "captions"]), ScoreChoices(width))

    def finish(self, arrays: Arrays) -> tuple[dict[str, ItemScores], Arrays]:
        """All metrics, and the array of `ScoreChoices`."""
        return metrics(arrays["score"], instances(self.data.table)), arrays


def metrics(score_NW: NDArray[np.floating], found: Sequence[Instance]) -> dict[str, ItemScores]:
    """All metrics of scores. `jaccard_of_10_and_more` is there where such instances are."""
    value_I = np.array([jaccard(score_NW[of.rows, of.places], of.true) for of in found])
    chance_I = np.array([drawn_jaccard(len(of.true), int(of.true.sum())) for of in found])
    dealt: dict[tuple[int, ...], int] = {}
    group_I = np.array([dealt.setdefault(tuple(sorted(of.rows.tolist())), len(dealt)) for of in found], np.int64)
    many_I = np.array([len(of.true) >= MANY for of in found])
    chosen = {"jaccard": np.full(len(found), True)} | ({f"jaccard_of_{MANY}_and_more": many_I} if many_I.any() else {})
    return {
        name: ItemScores(score_I=value_I[kept], chance=float(chance_I[kept].mean()), units={"groups": group_I[kept]})
        for name, kept in chosen.items()
    }


def jaccard(score_N: NDArray[np.floating], true_N: NDArray[np.bool_]) -> float:
    """The Jaccard index of the k images that score highest and the k true ones. With ties at the k-th score it is the
    expectation over their random order, in which the hits among them are hypergeometric."""
    k = int(true_N.sum())
    last = np.partition(score_N, -k)[-k]
    above_N, tied_N = score_N > last, score_N == last
    places, sure = k - int(above_N.sum()), int((above_N & true_N).sum())
    hit_H = np.arange(places + 1)
    share_H = hypergeom.pmf(hit_H, int(tied_N.sum()), int((tied_N & true_N).sum()), places)
    return float((share_H * (sure + hit_H) / (2 * k - sure - hit_H)).sum())


@cache
def drawn_jaccard(images: int, associations: int) -> float:
    """Expected Jaccard index of a random choice of as many of the images as are associated."""
    return jaccard(np.zeros(images), np.arange(images) < associations)
