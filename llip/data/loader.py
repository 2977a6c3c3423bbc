"""Batches of images and captions in an order that is a pure function of (manifest, seed, step); see `llip.data.order`.

Threads read row groups ahead, decode, crop and tokenise. Random draws hang on the sample and the epoch alone, so a
batch has the same bits whichever rank and thread made it.
"""

import itertools
import time
from collections import deque
from collections.abc import Generator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from llip.config import DataConfig
from llip.data import draws
from llip.data.decode import DecodeError
from llip.data.order import SampleOrder, Samples
from llip.data.read_ahead import ReadAhead
from llip.data.shards import RowGroup, Shards
from llip.data.tokenizer import tokenize
from llip.data.transforms import crop_draws, training_transform

_CHUNK = 32
"""Samples that one task of the thread pool prepares."""


@dataclass(frozen=True)
class Batch:
    """What one rank reads at one step: B images with C captions each."""

    images: Tensor
    """uint8 [B, 3, H, W], channels last in memory, pinned where there is CUDA."""
    token_ids: Tensor
    """int64 [C*B, L], row c*B + i is caption c of image i; as long as the longest caption."""
    sample_ids: list[str]
    step: int


@dataclass
class LoaderStats:
    """What happened since the loader was made."""

    batches: int = 0
    wait_seconds: float = 0.0
    """Time the consumer waited for batches."""
    decode_errors: int = 0
    """Images that could not be decoded; another of the same row group took the place of each."""


@dataclass(frozen=True)
class _Chunk:
    token_ids: Tensor
    """[C*n, L]"""
    sample_ids: list[str]
    decode_errors: int


class LaneLoader:
    """Endless batches of one rank from a shards folder.

    `seed` decides order, crops and captions; rank `rank` of `world_size` reads the lanes rank, rank + world_size, …,
    each of which fills `batch_size / lanes` consecutive places of its batch. Raises ValueError where `world_size` does
    not divide `config.lanes`, where there are fewer samples than `config.batch_size`, and for a damaged folder (see
    `Shards`).
    """

    def __init__(
        self,
        shards: str,
        config: DataConfig,
        *,
        image_size: int,
        context_length: int,
        seed: int,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        if config.lanes % world_size:
            raise ValueError(
                f"data.lanes {config.lanes} cannot be shared equally by {world_size} ranks; "
                "the number of ranks has to be a power of two up to it"
            )
        if not 0 <= rank < world_size:
            raise ValueError(f"rank is {rank}; it has to be in 0 … {world_size - 1}")
        self._shards = Shards(shards)
        self._order = SampleOrder(self._shards.group_rows, batch_size=config.batch_size, lanes=config.lanes, seed=seed)
        self._config = config
        self._image_size = image_size
        self._context_length = context_length
        self._seed = seed
        self._lanes = np.arange(rank, config.lanes, world_size)
        self._pool = ThreadPoolExecutor(config.threads, thread_name_prefix="decode")
        self.stats = LoaderStats()

    @property
    def steps_per_epoch(self) -> int:
        return self._order.steps_per_epoch

    def iter_from(self, step: int) -> Generator[Batch, None, None]:
        """Batches of `step` and all that follow; any step is reached at once. Closing it drops what is prepared."""
        ahead = -(-self._shards.manifest.row_group_size // self._order.samples_per_lane)  # type: ignore[operator]
        pending: deque[_PendingBatch] = deque()
        reader = ReadAhead(self._shards, self._order, self._lanes, step, steps=ahead)
        try:
            for submitted in itertools.count(step):
                pending.append(self._submit(submitted, *reader.advance()))
                if len(pending) > self._config.prefetch:
                    yield self._collect(pending.popleft())
        finally:
            for batch in pending:
                for chunk in batch.chunks:
                    chunk.cancel()
            reader.close()

    def close(self) -> None:
        """Stop the threads and close the files."""
        self._pool.shutdown(wait=True, cancel_futures=True)
        self._shards.close()

    def __enter__(self) -> "LaneLoader":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _submit(self, step: int, samples: Samples, groups: "dict[int, Future[RowGroup]]") -> "_PendingBatch":
        count, side = len(samples.group), self._image_size
        images = torch.empty((count, side, side, 3), dtype=torch.uint8, pin_memory=torch.cuda.is_available())
        chunks = []
        for start in range(0, count, _CHUNK):
            part = slice(start, start + _CHUNK)
            places = samples.group[part].tolist(), samples.row[part].tolist()
            chunks.append(self._pool.submit(self._prepare, samples.epoch, *places, groups, images[part].numpy()))
        return _PendingBatch(step, images, chunks)

    def _prepare(
        self,
        epoch: int,
        groups: list[int],
        rows: list[int],
        contents: "dict[int, Future[RowGroup]]",
        images: NDArray[np.uint8],
    ) -> _Chunk:
        """Fill `images` [n, H, W, 3] with the samples at some places, and tokenise their captions."""
        found = [contents[g].result() for g in groups]
        numbers = crop_draws(self._seed, epoch, [g.first + row for g, row in zip(found, rows, strict=True)])
        used = []
        for place, (group, row) in enumerate(zip(found, rows, strict=True)):
            pixels, kept = self._decode(group, row, numbers[place])
            images[place] = pixels.permute(1, 2, 0).numpy()
            used.append(kept)
        return _Chunk(
            token_ids=tokenize(self._draw_captions(epoch, found, used), self._context_length),
            sample_ids=[group.ids[row].as_py() for group, row in zip(found, used, strict=True)],
            decode_errors=sum((kept - row) % len(g) for g, kept, row in zip(found, used, rows, strict=True)),
        )

    def _decode(self, group: RowGroup, row: int, crop: list[float]) -> tuple[Tensor, int]:
        """The pixels of a row or, where it is broken, of the next of its row group that is not; and that row."""
        for used in itertools.chain(range(row, len(group)), range(row)):
            try:
                return training_transform(group.image(used), self._image_size, self._config.crop_scale, crop), used
            except DecodeError:
                continue
        raise ValueError(f"{group.where} holds no image that can be decoded")

    def _draw_captions(self, epoch: int, groups: list[RowGroup], rows: list[int]) -> list[str]:
        """C captions of every row, caption-major."""
        for group, row in zip(groups, rows, strict=True):
            if not group.caption_count(row):
                raise ValueError(f"{group.where}, row {row} has no caption; every row of a shard needs one")
        counts = np.array([group.caption_count(row) for group, row in zip(groups, rows, strict=True)])
        samples = [group.first + row for group, row in zip(groups, rows, strict=True)]
        drawn = draws.choices(
            counts, self._config.captions_per_image, self._seed, draws.CAPTIONS, epoch, np.array(samples)
        )
        return [
            group.caption(row, index)
            for of_rows in drawn.T.tolist()
            for group, row, index in zip(groups, rows, of_rows, strict=True)
        ]

    def _collect(self, batch: "_PendingBatch") -> Batch:
        start = time.perf_counter()
        chunks = [chunk.result() for chunk in batch.chunks]
        self.stats.wait_seconds += time.perf_counter() - start
        self.stats.batches += 1
        self.stats.decode_errors += sum(c.decode_errors for c in chunks)
        return Batch(
            images=batch.images.permute(0, 3, 1, 2),
            token_ids=_caption_major([c.token_ids for c in chunks], self._config.captions_per_image),
            sample_ids=[i for c in chunks for i in c.sample_ids],
            step=batch.step,
        )


@dataclass(frozen=True)
class _PendingBatch:
    step: int
    images: Tensor
    """[B, H, W, 3], being filled by the chunks."""
    chunks: "list[Future[_Chunk]]"


def _caption_major(chunks: list[Tensor], captions: int) -> Tensor:
    """Token ids of chunks, each [C*n, L of the chunk], as those of the batch, [C*B, L]."""
    longest = max(c.shape[1] for c in chunks)
    parts = [torch.nn.functional.pad(c, (0, longest - c.shape[1])).view(captions, -1, longest) for c in chunks]
    return torch.cat(parts, dim=1).view(-1, longest)
