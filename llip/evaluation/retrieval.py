"""Retrieval with several true captions an image and several true images a caption: exact, in chunks of captions.
Galleries too large for that: see `large_galleries`.

The gallery is the set's distinct captions and its images. A caption is true of the images that list it, and only of
these. Metrics: `text_to_image_r1/5/10` and `image_to_text_r1/5/10` (share of queries with a true item among the first
k), `text_to_image_map` over all captions and by caption type, `text_to_image_map_over_types` (the mean over the types,
whatever their numbers of captions), and `one_of_20/<type>`: the share of an image's true captions that score above 19
captions of the same type that are false of the image. These 19 are drawn by seed; a type with fewer takes all. Chance
levels are exact, and average the chance of every single query.

Axes: N images · T distinct captions · S captions of one chunk · J pairs of an image and a caption that it lists · X
distractors.
"""

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from llip.contrastive import ContrastiveModel
from llip.evaluation.calibration import LogitCounts
from llip.evaluation.encode import Arrays, ImageTask, KeepFeatures, encode_texts, from_arrays, scores
from llip.evaluation.item_scores import ItemScores
from llip.evaluation.metrics import RANKS, TieGroups, all_tied, average_precision, hit_at_k, tie_groups
from llip.evaluation.sets.evaluation_set import EvaluationSet
from llip.model.features import ImageFeatures, TextFeatures, batch_slice

logger = logging.getLogger(__name__)

CANDIDATES = 20
BLOCK_SCORES = 1 << 24
"""Scores of a chunk of captions (64 MB); a few copies of them exist at once."""


@dataclass(frozen=True)
class Captions:
    """The distinct captions of a set, and which image lists which, once each, ordered by caption."""

    texts: list[str]
    by_type: dict[str, NDArray[np.int64]]
    """Captions that occur with a caption type, ascending, by type."""
    image_J: NDArray[np.int64]
    text_J: NDArray[np.int64]
    decisions: list[tuple[int, int, str]]
    """(image, caption, type) as listed, without repeats."""

    @classmethod
    def of(cls, data: EvaluationSet) -> "Captions":
        """Raises ValueError for an image without captions, or with another number of types."""
        index: dict[str, int] = {}
        listed: dict[tuple[int, int, str], None] = {}
        blank: list[int] = []
        rows = zip(data.table["captions"].to_pylist(), data.table["caption_types"].to_pylist(), strict=True)
        for image, (captions, types) in enumerate(rows):
            said = [place for place, caption in enumerate(captions) if caption and caption.strip()]
            if not said or len(captions) != len(types) or None in types:
                raise ValueError(
                    f"evaluation set {data.name}, row {image}: {len(captions)} captions, {len(said)} of them not "
                    f"empty, and {len(types)} caption types; an image needs at least one caption, and a type for each"
                )
            blank += [image] * (len(captions) - len(said))
            for place in said:
                listed[image, index.setdefault(captions[place], len(index)), types[place]] = None
        if blank:
            logger.warning(
                "evaluation set %s: %d empty captions are left out, first in row %d", data.name, len(blank), blank[0]
            )
        text_image = np.unique([(text, image) for image, text, _ in listed], axis=0)
        return cls(
            texts=list(index),
            by_type={
                name: np.unique([text for _, text, other in listed if other == name])
                for name in sorted({name for _, _, name in listed})
            },
            image_J=text_image[:, 1],
            text_J=text_image[:, 0],
            decisions=list(listed),
        )

    def true_of(self, start: int, score_SN: Tensor) -> Tensor:
        """Truth of the captions from `start` on for every image, [S, N] bool like the scores."""
        first, last = np.searchsorted(self.text_J, [start, start + len(score_SN)])
        text_J = torch.from_numpy(self.text_J[first:last] - start)
        image_J = torch.from_numpy(self.image_J[first:last])
        true_SN = torch.zeros(score_SN.shape, dtype=torch.bool, device=score_SN.device)
        true_SN[text_J.to(score_SN.device), image_J.to(score_SN.device)] = True
        return true_SN

    def positives(self, text: int) -> NDArray[np.int64]:
        """The images of which a caption is true."""
        return self.image_J[slice(*np.searchsorted(self.text_J, [text, text + 1]))]


@dataclass(frozen=True)
class Retrieval:
    """The scores of all metrics, and the first images of every caption for a report."""

    item_scores: dict[str, ItemScores]
    captions: Captions
    best_images_TX: NDArray[np.int64]
    average_precision_T: NDArray[np.float64]
    logit_count_2H: NDArray[np.int64] | None = None
    """Pairs by logit, where the model gives probabilities: see `calibration`."""


class RetrievalTask:
    """Retrieval in one set: its captions are encoded at once, and ranked when the features of its images are there."""

    def __init__(self, model: ContrastiveModel, data: EvaluationSet, seed: int = 0) -> None:
        self.model, self.seed = model, seed
        self.captions = Captions.of(data)
        self.texts = encode_texts(model, self.captions.texts)
        self.task = ImageTask(data.name, data.table.select(["image"]), KeepFeatures())

    def finish(self, arrays: Arrays) -> tuple[dict[str, ItemScores], Retrieval]:
        """All metrics, and the rankings."""
        images = from_arrays(arrays, self.texts[0].device)
        ranked = rank(self.model, images, self.texts, self.captions, self.seed)
        return ranked.item_scores, ranked


def rank(
    model: ContrastiveModel, images: ImageFeatures, texts: TextFeatures, captions: Captions, seed: int = 0
) -> Retrieval:
    """All metrics in one pass over chunks of captions; memory does not grow with images times captions."""
    count = len(images[0])
    to_images, to_texts = TextToImage(captions, count), ImageToText(captions, count)
    choices, logits = OneOfMany(captions, count, seed), LogitCounts.of(model)
    for start, score_SN in score_blocks(model, images, texts):
        to_images.add(start, score_SN)
        true_SN = captions.true_of(start, score_SN)
        to_texts.add(score_SN, true_SN)
        choices.add(start, score_SN)
        if logits:
            logits.add(score_SN, true_SN)
    return Retrieval(
        to_images.scores() | to_texts.scores() | choices.scores(),
        captions,
        np.concatenate(to_images.best_images),
        np.array(to_images.average_precision),
        logits.count_2H if logits else None,
    )


def score_blocks(model: ContrastiveModel, images: ImageFeatures, texts: TextFeatures) -> Iterator[tuple[int, Tensor]]:
    """Chunks of captions with their scores against every image: the first caption's index, `[S, N]`."""
    at_once = max(1, BLOCK_SCORES // len(images[0]))
    for start in range(0, len(texts[0]), at_once):
        yield start, scores(model, images, batch_slice(texts, slice(start, start + at_once))).T.contiguous()


QUERIES = {"text_to_image": "captions", "image_to_text": "images"}


def hit_scores(
    name: str, best: tuple[NDArray[Any], NDArray[Any], NDArray[Any]], gallery: tuple[NDArray[Any], NDArray[Any]]
) -> dict[str, ItemScores]:
    """`name_r1/5/10`. best: of every query the false items above its best true one, and true and false ones that score
    as it does; gallery: its true and its false items."""
    units = {QUERIES[name]: np.arange(len(best[0]))}
    return {
        f"{name}_r{k}": ItemScores(
            score_I=hit_at_k(*best, k), chance=float(hit_at_k(0, *gallery, k).mean()), units=units
        )
        for k in RANKS
    }


class TextToImage:
    """Ranks of the true images of each caption among all images."""

    def __init__(self, captions: Captions, images: int) -> None:
        self.captions, self.images = captions, images
        self.groups: list[TieGroups] = []
        self.average_precision: list[float] = []
        self.best_images: list[NDArray[np.int64]] = []

    def add(self, start: int, score_SN: Tensor) -> None:
        self.best_images.append(score_SN.topk(min(5, self.images), dim=1).indices.cpu().numpy())
        for text, score_N in enumerate(score_SN.cpu().numpy(), start):
            groups = tie_groups(score_N, self.captions.positives(text))
            self.average_precision.append(average_precision(groups))
            self.groups.append(TieGroups(*(array[:1] for array in groups)))  # hits need the best positives only

    def scores(self) -> dict[str, ItemScores]:
        best = TieGroups(*(np.concatenate(arrays) for arrays in zip(*self.groups, strict=True)))
        positives_T = np.bincount(self.captions.text_J)
        found = hit_scores(
            "text_to_image",
            (best.above, best.positives_tied, best.tied - best.positives_tied),
            (positives_T, self.images - positives_T),
        )
        of_count = {int(p): average_precision(all_tied(self.images, int(p))) for p in np.unique(positives_T)}
        chance_T = np.array([of_count[p] for p in positives_T.tolist()])
        value_T = np.array(self.average_precision)

        def precision(texts: NDArray[np.int64], chance: float, stratum: NDArray[np.int64] | None = None) -> ItemScores:
            return ItemScores(score_I=value_T[texts], chance=chance, units={"captions": texts}, stratum_I=stratum)

        by_type = self.captions.by_type
        found["text_to_image_map"] = precision(np.arange(len(value_T)), float(chance_T.mean()))
        if len(by_type) > 1:
            stratum = np.repeat(np.arange(len(by_type)), [len(texts) for texts in by_type.values()])
            chance = float(np.mean([chance_T[texts].mean() for texts in by_type.values()]))
            found["text_to_image_map_over_types"] = precision(np.concatenate(list(by_type.values())), chance, stratum)
        return found | {
            f"text_to_image_map/{name}": precision(texts, float(chance_T[texts].mean()))
            for name, texts in by_type.items()
        }


class ImageToText:
    """Whether a true caption of each image is among the first k: its best true and its ten best false scores so far.

    With fewer false captions above it than k, the best true caption is a hit. Ties with it at the end of the ten need a
    count of their own.
    """

    def __init__(self, captions: Captions, images: int) -> None:
        self.captions, self.images = captions, images
        self.positive_N = torch.full((images,), -torch.inf)
        self.positives_tied_N = torch.zeros(images, dtype=torch.long)
        self.negative_NX = torch.full((images, RANKS[-1]), -torch.inf)
        self.last_tied_N = torch.zeros(images, dtype=torch.long)
        """False captions that score as the last of `negative_NX`, those in it included."""

    def add(self, score_SN: Tensor, true_SN: Tensor) -> None:
        self._add_positives(score_SN.masked_fill(~true_SN, -torch.inf))
        self._add_negatives(score_SN.masked_fill(true_SN, -torch.inf))

    def _add_positives(self, score_SN: Tensor) -> None:
        best_N = score_SN.amax(dim=0)
        tied_N = (score_SN == best_N).sum(dim=0).cpu()
        best_N = best_N.cpu()
        self.positives_tied_N = torch.where(best_N < self.positive_N, 0, tied_N) + torch.where(
            best_N > self.positive_N, 0, self.positives_tied_N
        )
        self.positive_N = torch.maximum(best_N, self.positive_N)

    def _add_negatives(self, score_SN: Tensor) -> None:
        before_NX, last_before_N = self.negative_NX, self.negative_NX[:, -1]
        chunk_NX = score_SN.topk(min(RANKS[-1], len(score_SN)), dim=0).values.T.cpu()
        self.negative_NX = torch.cat([before_NX, chunk_NX], dim=1).topk(RANKS[-1], dim=1).values
        last_N = self.negative_NX[:, -1]
        in_chunk_N = (score_SN == last_N.to(score_SN.device)).sum(dim=0).cpu()
        in_list_N = (before_NX == last_N[:, None]).sum(dim=1)
        self.last_tied_N = torch.where(last_before_N == last_N, self.last_tied_N, in_list_N) + in_chunk_N

    def scores(self) -> dict[str, ItemScores]:
        positive_N1 = self.positive_N[:, None]
        above_N = (self.negative_NX > positive_N1).sum(dim=1)
        tied_N = torch.where(
            self.negative_NX[:, -1] == self.positive_N,
            self.last_tied_N,
            (self.negative_NX == positive_N1).sum(dim=1),
        )
        true_N = np.bincount(self.captions.image_J, minlength=self.images)
        false_N = len(self.captions.texts) - true_N
        best = above_N.numpy(), self.positives_tied_N.numpy(), tied_N.numpy()
        return hit_scores("image_to_text", best, (true_N, false_N))


class OneOfMany:
    """One true caption of an image against false captions of the same type."""

    def __init__(self, captions: Captions, images: int, seed: int) -> None:
        self.type, image, self.candidate_DX = self._draw(captions, images, seed)
        self.image_D1 = image[:, None]
        self.score_DX = np.full(self.candidate_DX.shape, -np.inf, dtype=np.float32)

    @staticmethod
    def _draw(
        captions: Captions, images: int, seed: int
    ) -> tuple[NDArray[np.str_], NDArray[np.int64], NDArray[np.int64]]:
        """Type, image and candidates of all decisions: the true caption, then distractors, then -1 up to 20."""
        rng = np.random.default_rng(seed)
        true: list[set[int]] = [set() for _ in range(images)]
        for image, text in zip(captions.image_J.tolist(), captions.text_J.tolist(), strict=True):
            true[image].add(text)
        kept, candidates = [], []
        for image, text, name in captions.decisions:
            pool = captions.by_type[name]
            # a few more than needed, in random order, stay uniformly drawn once the true ones are dropped
            enough = min(len(pool), CANDIDATES - 1 + len(true[image]))
            drawn = pool[rng.choice(len(pool), enough, replace=False)].tolist()
            distractors = [t for t in drawn if t not in true[image]][: CANDIDATES - 1]
            if distractors:
                kept.append((name, image))
                candidates.append([text, *distractors] + [-1] * (CANDIDATES - 1 - len(distractors)))
        return (
            np.array([name for name, _ in kept], dtype=np.str_),
            np.array([image for _, image in kept], dtype=np.int64),
            np.array(candidates, dtype=np.int64).reshape(-1, CANDIDATES),
        )

    def add(self, start: int, score_SN: Tensor) -> None:
        block = score_SN.cpu().numpy()
        decision, place = np.nonzero((self.candidate_DX >= start) & (self.candidate_DX < start + len(block)))
        text = self.candidate_DX[decision, place] - start
        self.score_DX[decision, place] = block[text, self.image_D1[decision, 0]]

    def scores(self) -> dict[str, ItemScores]:
        true_D1, false_DX = self.score_DX[:, :1], self.score_DX[:, 1:]
        right_D = hit_at_k((false_DX > true_D1).sum(axis=1), 1, (false_DX == true_D1).sum(axis=1), 1)
        chance_D = 1 / (self.candidate_DX >= 0).sum(axis=1)
        by_type = {name: self.type == name for name in np.unique(self.type).tolist()}
        return {
            f"one_of_{CANDIDATES}/{name}": ItemScores(
                score_I=right_D[chosen],
                chance=float(chance_D[chosen].mean()),
                units={"images": self.image_D1[chosen, 0], "captions": self.candidate_DX[chosen, 0]},
            )
            for name, chosen in by_type.items()
        }
