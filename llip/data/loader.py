"""Batches of images and captions in an order that is a pure function of (manifest, seed, step); see `llip.data.order`.

Threads read row groups ahead, decode, crop and tokenise. Random draws hang on the sample and the epoch alone, so a
batch has the same bits whichever rank and thread made it.
"""

import itertools
import logging
import re
import time
from collections import deque
from collections.abc import Generator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from llip.config import DataConfig
from llip.data import draws
from llip.data.order import MixedOrder, SampleOrder, Samples, lanes_of
from llip.data.shards import ReadAhead, RowGroup, ShardSets, Texts
from llip.data.tokenizer import tokenize
from llip.data.transforms import DecodeError, crop_draws, training_transform

logger = logging.getLogger(__name__)

_CHUNK = 32
"""Samples that one task of the thread pool prepares."""


@dataclass(frozen=True)
class Batch:
    """Data of one rank at one step: B images with C captions each."""

    images: Tensor
    """uint8 [B, 3, H, W], channels last in memory, pinned where there is CUDA."""
    token_ids: Tensor
    """int64 [C*B, L], row c*B + i is caption c of image i; as long as the longest caption."""
    sample_ids: list[str]
    step: int
    taught: tuple[Tensor, Tensor] | None = None
    """A teacher's embeddings of the images [B, D] and captions [C*B, D], fp16; None where they are not asked for."""


@dataclass
class LoaderStats:
    """Counts since the loader was made."""

    batches: int = 0
    wait_seconds: float = 0.0
    """Time the consumer waited for batches."""
    tokens: int = 0
    """Tokens of captions, start and end of text included."""
    decode_errors: int = 0
    """Images that could not be decoded; another of the same row group took the place of each."""


@dataclass(frozen=True)
class _Chunk:
    token_ids: Tensor
    """[C*n, L]"""
    tokens: int
    """Number of tokens without padding."""
    sample_ids: list[str]
    decode_errors: int
    taught: tuple[Tensor, Tensor] | None
    """A teacher's embeddings of images [n, D] and captions [C*n, D]."""


class LaneLoader:
    """Endless batches of one rank from a shards folder, or from several mixed by `config.weights`.

    `seed` decides order, crops and captions; rank `rank` of `world_size` reads the lanes rank, rank + world_size, …,
    each of which fills `batch_size / lanes` consecutive places of its batch. `taught`: with a teacher's embeddings.
    Raises ValueError for more ranks than `config.lane_count`, where there are fewer samples than `config.batch_size`,
    for shards without such embeddings, and for a damaged folder (see `Shards`).
    """

    def __init__(
        self,
        shards: str | Sequence[str],
        config: DataConfig,
        *,
        image_size: int,
        context_length: int,
        seed: int,
        rank: int = 0,
        world_size: int = 1,
        taught: bool = False,
    ) -> None:
        if not 0 <= rank < world_size:
            raise ValueError(f"rank is {rank}; it has to be in 0 … {world_size - 1}")
        folders = (shards,) if isinstance(shards, str) else tuple(shards)
        self._shards = ShardSets(folders, synthetic=config.synthetic_share > 0, taught=taught)
        self.teacher_scale = self._shards.teacher["logit_scale"] if self._shards.teacher else None
        """Factor of the teacher's cosines; None where there is none."""
        self._order = _order(self._shards.group_rows, config, seed)
        self._config = config
        self._image_size = image_size
        self._context_length = context_length
        self._seed = seed
        self._lanes = lanes_of(rank, world_size, config.lane_count)
        self._pool = ThreadPoolExecutor(config.threads, thread_name_prefix="decode")
        self._named: set[tuple[str, int]] = set()
        self.stats = LoaderStats()

    @property
    def steps_per_epoch(self) -> int:
        return self._order.steps_per_epoch

    def iter_from(self, step: int) -> Generator[Batch, None, None]:
        """Batches of `step` and all that follow; any step is reached at once. Closing it drops what is prepared."""
        ahead = -(-self._shards.row_group_size // self._order.samples_per_lane)
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
            chunks.append(self._pool.submit(self._prepare, samples.epoch[part], *places, groups, images[part].numpy()))
        return _PendingBatch(step, images, chunks)

    def _prepare(
        self,
        epoch: NDArray[np.int64],
        groups: list[int],
        rows: list[int],
        contents: "dict[int, Future[RowGroup]]",
        images: NDArray[np.uint8],
    ) -> _Chunk:
        """Fill `images` [n, H, W, 3] with the samples at some places, and tokenise their captions."""
        found = [contents[g].result() for g in groups]
        places = np.array([g.first + row for g, row in zip(found, rows, strict=True)])
        numbers = crop_draws(self._seed, epoch, places.tolist())
        rows = self._taken(epoch, found, rows, places)
        used = []
        for place, (group, row) in enumerate(zip(found, rows, strict=True)):
            pixels, kept = self._decode(group, row, numbers[place])
            images[place] = pixels.permute(1, 2, 0).numpy()
            used.append(kept)
        captions = self._draw_captions(epoch, found, used, places)
        texts = self._sampled([of_rows.text(row, index) for of_rows, row, index in captions], epoch, places)
        token_ids = tokenize(texts, self._context_length)
        return _Chunk(
            token_ids=token_ids,
            tokens=int((token_ids.argmax(dim=1) + 1).sum()),  # the end of text has the highest id
            sample_ids=[group.ids[row].as_py() for group, row in zip(found, used, strict=True)],
            decode_errors=sum((kept - row) % len(g) for g, kept, row in zip(found, used, rows, strict=True)),
            taught=_taught(found, used, [index for _, _, index in captions]),
        )

    def _taken(
        self, epoch: NDArray[np.int64], groups: list[RowGroup], rows: list[int], places: NDArray[np.int64]
    ) -> list[int]:
        """Rows to read at these positions; only online balancing replaces the planned row."""
        keys = draws.column(epoch), draws.column(places)
        numbers = draws.uniform(self._seed, draws.ONLINE, *keys, np.arange(2)).tolist()
        return [
            group.keep.row(row, *of_place) if group.keep else row
            for group, row, of_place in zip(groups, rows, numbers, strict=True)
        ]

    def _decode(self, group: RowGroup, row: int, crop: list[float]) -> tuple[Tensor, int]:
        """The pixels of a row or, where it is broken, of the next of its row group that is not; and that row."""
        for used in itertools.chain(range(row, len(group)), range(row)):
            try:
                return training_transform(group.image(used), self._image_size, self._config.crop_scale, crop), used
            except DecodeError as error:
                self._name(group, used, error)
        raise ValueError(f"{group.where} holds no image that can be decoded")

    def _name(self, group: RowGroup, row: int, error: DecodeError) -> None:
        """Say once which image cannot be decoded."""
        if (place := (group.where, row)) not in self._named:
            self._named.add(place)
            what = str(error).partition("\n")[0]
            logger.warning("%s, row %d cannot be decoded, the next one takes its place: %s", group.where, row, what)

    def _draw_captions(
        self, epoch: NDArray[np.int64], groups: list[RowGroup], rows: list[int], places: NDArray[np.int64]
    ) -> list[tuple[Texts, int, int]]:
        """C captions of every row, caption-major: where each stands, in its row."""
        for group, row in zip(groups, rows, strict=True):
            if not group.captions.count(row):
                raise ValueError(f"{group.where}, row {row} has no caption; every row of a shard needs one")
        samples = np.array(
            [
                group.first + row if group.keep is None else place  # a row may stand at several
                for group, row, place in zip(groups, rows, places, strict=True)
            ]
        )
        kept = [self._kept(*at) for at in zip(epoch.tolist(), groups, rows, places.tolist(), strict=True)]
        drawn = self._draw(draws.CAPTIONS, epoch, [group.captions for group in groups], rows, samples, kept)
        share = self._config.synthetic_share
        if not share:
            return [text for of_rows in zip(*drawn, strict=True) for text in of_rows]
        texts = [group.synthetic for group in groups if group.synthetic]
        every = [range(of_group.count(row)) for of_group, row in zip(texts, rows, strict=True)]
        written = self._draw(draws.SYNTHETIC, epoch, texts, rows, samples, every)
        places = np.arange(self._config.captions_per_image)
        keys = draws.column(epoch), draws.column(samples)
        taken = draws.uniform(self._seed, draws.SOURCE, *keys, places) < share
        return [
            (written if taken[i, c] and written[i] else drawn)[i][c]
            for c in range(len(places))
            for i in range(len(samples))
        ]

    def _sampled(self, texts: list[str], epoch: NDArray[np.int64], places: NDArray[np.int64]) -> list[str]:
        """Caption-major texts, or sub-captions of them where these are asked for."""
        most, captions = self._config.sub_captions, self._config.captions_per_image
        if most is None:
            return texts
        keys = draws.column(epoch), draws.column(places)
        numbers = draws.uniform(self._seed, draws.SENTENCES, *keys, np.arange(captions * draws_of(most)))
        by_caption = numbers.reshape(len(places), captions, -1).transpose(1, 0, 2).reshape(len(texts), -1).tolist()
        return [sub_caption(text, most, of_text) for text, of_text in zip(texts, by_caption, strict=True)]

    def _kept(self, epoch: int, group: RowGroup, row: int, place: int) -> Sequence[int]:
        """The captions of a row that may be drawn at a place."""
        every = range(group.captions.count(row))
        if group.keep is None:
            return every
        return group.keep.captions(row, draws.uniform(self._seed, draws.ONLINE, epoch, place, np.array(every) + 2))

    def _draw(
        self,
        use: int,
        epoch: NDArray[np.int64],
        texts: list[Texts],
        rows: list[int],
        samples: NDArray[np.int64],
        allowed: Sequence[Sequence[int]],
    ) -> list[list[tuple[Texts, int, int]]]:
        """Places of C of the allowed texts of every row; none of a row that has none."""
        counts = np.array([len(of_row) for of_row in allowed])
        drawn = draws.choices(np.maximum(counts, 1), self._config.captions_per_image, self._seed, use, epoch, samples)
        return [
            [(of_group, row, chosen[index]) for index in of_row] if chosen else []
            for of_group, row, of_row, chosen in zip(texts, rows, drawn.tolist(), allowed, strict=True)
        ]

    def _collect(self, batch: "_PendingBatch") -> Batch:
        start = time.perf_counter()
        chunks = [chunk.result() for chunk in batch.chunks]
        self.stats.wait_seconds += time.perf_counter() - start
        self.stats.batches += 1
        self.stats.tokens += sum(c.tokens for c in chunks)
        self.stats.decode_errors += sum(c.decode_errors for c in chunks)
        return Batch(
            images=batch.images.permute(0, 3, 1, 2),
            token_ids=_caption_major([c.token_ids for c in chunks], self._config.captions_per_image),
            sample_ids=[i for c in chunks for i in c.sample_ids],
            step=batch.step,
            taught=_joined([c.taught for c in chunks if c.taught], self._config.captions_per_image),
        )


@dataclass(frozen=True)
class _PendingBatch:
    step: int
    images: Tensor
    """[B, H, W, 3], being filled by the chunks."""
    chunks: "list[Future[_Chunk]]"


def _order(group_rows: list[NDArray[np.int64]], config: DataConfig, seed: int) -> SampleOrder | MixedOrder:
    """The order of one set or, by weights, of several; without weights each counts by its rows."""
    if len(group_rows) == 1 and config.weights is None:
        return SampleOrder(group_rows[0], batch_size=config.batch_size, lanes=config.lane_count, seed=seed)
    weights = config.weights or [float(rows.sum()) for rows in group_rows]
    return MixedOrder(group_rows, weights, batch_size=config.batch_size, lanes=config.lane_count, seed=seed)


def _caption_major(chunks: list[Tensor], captions: int) -> Tensor:
    """Token ids of chunks, each [C*n, L of the chunk], as those of the batch, [C*B, L]."""
    longest = max(c.shape[1] for c in chunks)
    parts = [torch.nn.functional.pad(c, (0, longest - c.shape[1])).view(captions, -1, longest) for c in chunks]
    return torch.cat(parts, dim=1).view(-1, longest)


def _taught(groups: list[RowGroup], rows: list[int], chosen: list[int]) -> tuple[Tensor, Tensor] | None:
    """Embeddings of the images [n, D] and of the chosen captions [C*n, D] of rows, where these have any."""
    of_rows = [group.teacher for group in groups if group.teacher]
    if not of_rows:
        return None
    images = [teacher.image(row) for teacher, row in zip(of_rows, rows, strict=True)]
    places = itertools.cycle(zip(of_rows, rows, strict=True))
    captions = [teacher.caption(row, index) for index, (teacher, row) in zip(chosen, places, strict=False)]
    return torch.from_numpy(np.stack(images)), torch.from_numpy(np.stack(captions))


def _joined(chunks: list[tuple[Tensor, Tensor]], captions: int) -> tuple[Tensor, Tensor] | None:
    """Embeddings of chunks as those of the batch, its captions caption-major."""
    if not chunks:
        return None
    images, texts = zip(*chunks, strict=True)
    return torch.cat(images), torch.cat([c.unflatten(0, (captions, -1)) for c in texts], dim=1).flatten(0, 1)


_SENTENCE_END = re.compile(r"(?<=[.!?。！？])\s+|(?<=[。！？])")
"""Between sentences: white space after a full stop, or the end of a sentence of a script that has none."""


def draws_of(most: int) -> int:
    """Uniform numbers that `sub_caption` takes."""
    return 2 + most


def sub_caption(text: str, most: int, numbers: Sequence[float]) -> str:
    """One to `most` sentences of a text in their order, as likely neighbours as any (FLAIR, arXiv 2412.03561).

    `numbers` are `draws_of(most)` uniform draws in [0, 1): how many sentences, of which kind, and which.
    """
    sentences = [sentence for sentence in _SENTENCE_END.split(text.strip()) if sentence]
    if len(sentences) < 2:
        return text
    count = 1 + int(numbers[0] * min(most, len(sentences)))
    if numbers[1] < 0.5:
        first = int(numbers[2] * (len(sentences) - count + 1))
        return " ".join(sentences[first : first + count])
    left = list(range(len(sentences)))
    chosen = sorted(left.pop(int(number * len(left))) for number in numbers[2 : 2 + count])
    return " ".join(sentences[i] for i in chosen)
