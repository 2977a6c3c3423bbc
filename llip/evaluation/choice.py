"""One image, several captions, one of them true: hard negatives, as in SugarCrepe, ARO and Winoground.

`choice_accuracy` is the share of images whose true caption scores highest, over all rows, by kind of negative
(`choice_accuracy/<kind>`, of kinds with 25 rows and more) and as the mean of these kinds. Two rows of a `group` are
Winoground's two by two (Thrush et al., CVPR 2022): `text_score` asks that each image prefers its own caption,
`image_score` that each caption prefers its own image, `group_score` for both. Ties count as a random order of what
ties.

Axes: N images · W captions of an image, fewer are padded · G groups, each of two images and two captions.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from torch import Tensor

from llip.contrastive import ContrastiveModel
from llip.evaluation.encode import Arrays, ImageTask, encode_texts, scores
from llip.evaluation.item_scores import ItemScores
from llip.evaluation.metrics import hit_at_k
from llip.evaluation.sets.evaluation_set import EvaluationSet
from llip.model.features import batch_slice

FEWEST = 25
"""Rows of a kind that has a metric of its own."""


@dataclass(frozen=True)
class ScoreChoices:
    """The job on a batch: `score` [B, W], the cosines of each image with its captions; -inf where it has fewer."""

    width: int

    def __call__(self, model: ContrastiveModel, pixels_BCHW: Tensor, rows: pa.Table) -> Arrays:
        listed = rows["captions"].to_pylist()
        images = model.encode_image(pixels_BCHW)
        texts = encode_texts(model, [caption for captions in listed for caption in captions])
        score_BW, start = torch.full((len(listed), self.width), -torch.inf), 0
        for row, captions in enumerate(listed):
            own = batch_slice(texts, slice(start, start + len(captions)))
            score_BW[row, : len(captions)] = scores(model, batch_slice(images, slice(row, row + 1)), own)[0].cpu()
            start += len(captions)
        return {"score": score_BW.numpy()}


class Choice:
    """The choices of one set."""

    def __init__(self, model: ContrastiveModel, data: EvaluationSet) -> None:
        self.data = data
        width = max(map(len, data.table["captions"].to_pylist()))
        self.task = ImageTask(data.name, data.table.select(["image", "captions"]), ScoreChoices(width))

    def finish(self, arrays: Arrays) -> tuple[dict[str, ItemScores], Arrays]:
        """All metrics, and the array of `ScoreChoices`."""
        table = self.data.table
        return metrics(
            arrays["score"],
            table["true"].to_numpy(),
            [len(captions) for captions in table["captions"].to_pylist()],
            kinds=table["kind"].to_pylist(),
            groups=table["group"].to_pylist(),
            units=units(table["image"].to_pylist()),
        ), arrays


def units(images: Sequence[Any]) -> dict[str, NDArray[np.int64]]:
    """The number of each row's image: one for those that are the same bytes, or lie in the same place. Where one
    image is that of all rows, choices are what was drawn."""
    index: dict[Any, int] = {}
    keys = (tuple(image.items()) if isinstance(image, dict) else image for image in images)
    found = np.array([index.setdefault(key, len(index)) for key in keys], np.int64)
    return {"images": found} if len(index) > 1 else {"choices": np.arange(len(found))}


def metrics(
    score_NW: NDArray[np.floating],
    true_N: NDArray[np.integer],
    captions_N: Sequence[int],
    *,
    kinds: Sequence[str],
    groups: Sequence[int | None],
    units: Mapping[str, NDArray[np.int64]],
) -> dict[str, ItemScores]:
    """All metrics of scores. `captions_N` are the captions of each image; `units` of each row: see `ItemScores`."""
    of_true_N1 = np.take_along_axis(score_NW, true_N[:, None], axis=1)
    right_N = hit_at_k((score_NW > of_true_N1).sum(axis=1), 1, (score_NW == of_true_N1).sum(axis=1) - 1, 1)
    chance_N = 1 / np.asarray(captions_N)

    def accuracy(rows: NDArray[np.int64], chance: float, stratum: NDArray[np.int64] | None = None) -> ItemScores:
        of_rows = {sort: unit_N[rows] for sort, unit_N in units.items()}
        return ItemScores(score_I=right_N[rows], chance=chance, units=of_rows, stratum_I=stratum)

    found = {"choice_accuracy": accuracy(np.arange(len(true_N)), float(chance_N.mean()))}
    kind_N = np.array(kinds, dtype=np.str_)
    of_kind = {kind: np.flatnonzero(kind_N == kind) for kind in np.unique(kind_N).tolist()}
    of_kind = {kind: rows for kind, rows in of_kind.items() if kind and len(rows) >= FEWEST}
    if len(of_kind) > 1:
        stratum = np.repeat(np.arange(len(of_kind)), [len(rows) for rows in of_kind.values()])
        chance = float(np.mean([chance_N[rows].mean() for rows in of_kind.values()]))
        found["choice_accuracy_over_kinds"] = accuracy(np.concatenate(list(of_kind.values())), chance, stratum)
        found |= {f"choice_accuracy/{kind}": accuracy(r, float(chance_N[r].mean())) for kind, r in of_kind.items()}
    return found | _two_by_two(score_NW, true_N, groups)


def _two_by_two(
    score_NW: NDArray[np.floating], true_N: NDArray[np.integer], groups: Sequence[int | None]
) -> dict[str, ItemScores]:
    """Winoground's scores over the groups of two rows; nothing where there is none."""
    rows: dict[int, list[int]] = {}
    for row, group in enumerate(groups):
        if group is not None:
            rows.setdefault(group, []).append(row)
    if not rows:
        return {}
    row_G2 = np.array(list(rows.values()))
    first_G, second_G = row_G2.T
    own_G2 = true_N[row_G2]  # the caption of each image, which is false of the other one
    own = [score_NW[first_G, own_G2[:, 0]], score_NW[second_G, own_G2[:, 1]]]
    crossed = [score_NW[first_G, own_G2[:, 1]], score_NW[second_G, own_G2[:, 0]]]
    units = {"groups": np.arange(len(row_G2))}
    text = _wins(own[0], crossed[0]) * _wins(own[1], crossed[1])
    image = _wins(own[0], crossed[1]) * _wins(own[1], crossed[0])
    return {
        "text_score": ItemScores(score_I=text, chance=1 / 4, units=units),
        "image_score": ItemScores(score_I=image, chance=1 / 4, units=units),
        "group_score": ItemScores(score_I=_both(np.stack(own), np.stack(crossed)), chance=1 / 6, units=units),
    }


def _wins(own_G: NDArray[np.floating], other_G: NDArray[np.floating]) -> NDArray[np.float64]:
    return np.asarray((own_G > other_G) + 0.5 * (own_G == other_G))


def _both(own_2G: NDArray[np.floating], crossed_2G: NDArray[np.floating]) -> NDArray[np.float64]:
    """Probability that both pairs that belong together score above both others, in a random order of what ties."""
    lowest_G, highest_G = own_2G.min(axis=0), crossed_2G.max(axis=0)
    own_G, crossed_G = (own_2G == highest_G).sum(axis=0), (crossed_2G == highest_G).sum(axis=0)
    orders = np.array([[1, 1, 1], [1, 2, 3], [1, 3, 6]])  # own above crossed: one of (own + crossed choose own)
    return np.where(lowest_G == highest_G, 1 / orders[own_G, crossed_G], (lowest_G > highest_G).astype(float))
