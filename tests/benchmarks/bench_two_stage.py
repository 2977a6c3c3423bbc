"""Two-stage retrieval against exact: how many of the exact first ten it finds, and at which share of the time.

    uv run tests/benchmarks/bench_two_stage.py --checkpoint output/runs/<name> --gallery output/shards

The gallery is an evaluation set of any format, or a folder of Parquet files with images and captions, such as shards.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

import numpy as np
import torch
import tyro

from llip.contrastive import ContrastiveModel
from llip.evaluation import two_stage
from llip.evaluation.encode import ImageTask, InProcess, KeepFeatures, encode_texts, from_arrays
from llip.evaluation.large_galleries import ANCHORS
from llip.evaluation.retrieval import Captions, score_blocks
from llip.evaluation.sets import read_set
from llip.model.features import Mixture, Query, batch_slice
from llip.training.weights import Weights

RANK = 10

Result = TypeVar("Result")


@dataclass(frozen=True, kw_only=True)
class Settings:
    checkpoint: str
    """A run or a checkpoint folder of a Llip model."""
    gallery: str
    """Folder of a retrieval set."""
    images: int = 20_000
    """Of the gallery, at most."""
    queries: int = 1_000
    """Captions, drawn by seed."""
    anchors: int = ANCHORS
    """Captions of the anchor index, drawn beside the queries."""
    candidates: tuple[int, ...] = (20, 50, 100, 200, 500, 1_000, 2_000)
    rounds: int = 3
    threads: int = 1
    """CPU threads."""


@dataclass(frozen=True)
class Point:
    index: str
    candidates: int
    recall: float
    """Mean share of the exact first ten that is among the first ten of two stages."""
    cost: np.ndarray
    """Time over that of exact scores, by round."""


@torch.inference_mode()
def curve(
    model: ContrastiveModel,
    images: Mixture,
    texts: Query,
    indices: dict[str, two_stage.AnchorIndex],
    candidates: tuple[int, ...],
    rounds: int,
) -> list[Point]:
    """Every round times the exact search, then every index with each number of candidates."""

    def exact() -> torch.Tensor:
        blocks = score_blocks(model, images, texts)
        return torch.cat([score_SN.topk(RANK, dim=1).indices for _, score_SN in blocks])

    searches = {
        (name, count): partial(two_stage.search, model, images, texts, index, candidates=count)
        for name, index in indices.items()
        for count in candidates
    }
    expected, found = exact(), dict[tuple[str, int], torch.Tensor]()
    cost: dict[tuple[str, int], list[float]] = {key: [] for key in searches}
    for _ in range(rounds):
        seconds = timed(exact)[1]
        for key, search in searches.items():
            (item_QC, _), of_two = timed(search)
            found[key] = item_QC[:, :RANK]
            cost[key].append(of_two / seconds)
    hit = {key: (expected[:, :, None] == f[:, None]).any(2).float().mean().item() for key, f in found.items()}
    return [Point(*key, hit[key], np.array(cost[key])) for key in searches]


def timed(function: Callable[[], Result]) -> tuple[Result, float]:
    start = time.perf_counter()
    result = function()
    return result, time.perf_counter() - start


def main(settings: Settings) -> None:
    torch.set_num_threads(settings.threads)
    model = Weights.find(settings.checkpoint).load().eval()
    data = read_set(settings.gallery)
    rows = data.table.slice(0, settings.images)
    captions = Captions.of(type(data)(name=data.name, task="retrieval", table=rows)).texts
    drawn = np.random.default_rng(0).permutation(len(captions))[: settings.queries + settings.anchors]
    with torch.inference_mode():
        (arrays,) = InProcess(model=model)([ImageTask(data.name, rows.select(["image"]), KeepFeatures())])
        images, texts = from_arrays(arrays, torch.device("cpu")), encode_texts(model, [captions[i] for i in drawn])
        if not isinstance(images, Mixture) or not isinstance(texts, Query):
            raise SystemExit(f"error: {settings.checkpoint} is no Llip model: its images have one vector already")
        anchors, queries = (batch_slice(texts, s) for s in (slice(settings.anchors), slice(settings.anchors, None)))
        indices = {
            f"{len(anchors[0])} anchors": two_stage.AnchorIndex(model, images, anchors),
        }
    print(f"{len(rows):,} images, {len(queries[0]):,} captions, {settings.threads} threads\n")
    print(f"| index | candidates | of the gallery | recall@{RANK} of exact | time, exact = 1 |")
    print("| --- | ---: | ---: | ---: | ---: |")
    fitting = tuple(count for count in settings.candidates if count <= len(rows))
    for point in curve(model, images, queries, indices, fitting, settings.rounds):
        cost = f"{np.median(point.cost):.3f} ({point.cost.min():.3f} – {point.cost.max():.3f})"
        share = f"{point.candidates / len(rows):.1%}"
        print(f"| {point.index} | {point.candidates:,} | {share} | {point.recall:.3f} | {cost} |")


if __name__ == "__main__":
    main(tyro.cli(Settings, description=__doc__))
