"""Two-stage retrieval against exact: how many of the exact first ten it finds, and at which share of the time.

    uv run tests/benchmarks/bench_two_stage.py --checkpoint output/runs/<name> --gallery output/shards

The gallery is an evaluation set of any format, or a folder of Parquet files with images and captions, such as shards.
The time is that of the searches. The index, made once for a gallery, is counted in captions: those that the exact
search scores in its time.
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
    anchors: Query,
    candidates: tuple[int, ...],
    rounds: int,
) -> tuple[list[Point], np.ndarray]:
    """Every round times the exact search, the index, and the search with each number of candidates.

    Returns also the time of the index by round, in captions that the exact search takes it for.
    """
    index = two_stage.AnchorIndex(model, images, anchors)

    def exact() -> torch.Tensor:
        blocks = score_blocks(model, images, texts)
        return torch.cat([score_SN.topk(RANK, dim=1).indices for _, score_SN in blocks])

    searches = {n: partial(two_stage.search, model, images, texts, index, candidates=n) for n in candidates}
    expected, found = exact(), dict[int, torch.Tensor]()
    cost: dict[int, list[float]] = {count: [] for count in searches}
    of_index = []
    for _ in range(rounds):
        seconds = timed(exact)[1]
        of_index.append(timed(partial(two_stage.AnchorIndex, model, images, anchors))[1] / seconds * len(texts[0]))
        for count, search in searches.items():
            (item_QC, _), of_two = timed(search)
            found[count] = item_QC[:, :RANK]
            cost[count].append(of_two / seconds)
    hit = {count: (expected[:, :, None] == f[:, None]).any(2).float().mean().item() for count, f in found.items()}
    return [Point(count, hit[count], np.array(cost[count])) for count in searches], np.array(of_index)


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
    print(f"{len(rows):,} images, {len(queries[0]):,} captions, {settings.threads} threads\n")
    print(f"| candidates | of the gallery | recall@{RANK} of exact | time, exact = 1 |")
    print("| ---: | ---: | ---: | ---: |")
    fitting = tuple(count for count in settings.candidates if count <= len(rows))
    points, index = curve(model, images, queries, anchors, fitting, settings.rounds)
    for point in points:
        cost = f"{np.median(point.cost):.3f} ({point.cost.min():.3f} – {point.cost.max():.3f})"
        share = f"{point.candidates / len(rows):.1%}"
        print(f"| {point.candidates:,} | {share} | {point.recall:.3f} | {cost} |")
    captions_of_index = f"{np.median(index):,.0f} ({index.min():,.0f} – {index.max():,.0f})"
    print(
        f"\nthe index of {len(anchors[0]):,} anchors takes the time of {captions_of_index} captions in the exact search"
    )


if __name__ == "__main__":
    main(tyro.cli(Settings, description=__doc__))
