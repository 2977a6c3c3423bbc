"""Features of many images and captions, in batches, and jobs done on one batch of images.

A *runner* reads the rows of its tasks in batches, decodes their images and does the task's job on each batch.
`InProcess` does so here; `pipelines.evaluate` has one that does so on Ray actors. Both cut the same batches, so both
give the same numbers.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import count
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from torch import Tensor

from llip.config import ModelConfig, PreprocessConfig
from llip.contrastive import ContrastiveModel
from llip.data.tokenizer import tokenize
from llip.data.transforms import OPENAI, DecodeError, evaluation_transform, normalize
from llip.evaluation.sets import image_references
from llip.model.features import (
    Features,
    ImageFeatures,
    Message,
    Mixture,
    Pooled,
    Query,
    TextFeatures,
    batch_slice,
    concatenate,
)
from llip.progress import bar as bar_of

Arrays = dict[str, NDArray[Any]]
"""Named arrays that share the rows of a set as their first axis."""


class BatchJob(Protocol):
    """A job on one batch of images, small enough to send to another process."""

    def __call__(self, model: ContrastiveModel, pixels_BCHW: Tensor, rows: pa.Table) -> Arrays: ...


@dataclass(frozen=True)
class ImageTask:
    """A job for the images of a set."""

    name: str
    """Name of the set, for progress bars and messages."""
    rows: pa.Table
    """With a column `image` of encoded images, or of references to them."""
    job: BatchJob


Runner = Callable[[Sequence[ImageTask]], Iterable[Arrays]]
"""Does tasks one after the other; the result of each is in the order of its rows. An empty list where another process
gets the results."""


@dataclass(frozen=True, kw_only=True)
class InProcess:
    """The runner of one process: threads decode the next batch while the model works on this one."""

    model: ContrastiveModel
    batch_size: int = 64
    threads: int = 2
    progress: bool = True

    def __call__(self, tasks: Sequence[ImageTask]) -> Iterator[Arrays]:
        with ThreadPoolExecutor(self.threads) as pool:
            for task in tasks:
                yield self._do(task, pool)

    def _do(self, task: ImageTask, pool: ThreadPoolExecutor) -> Arrays:
        parts = []
        with bar_of(
            total=task.rows.num_rows, desc=f"evaluate {task.name}", unit="image", disable=not self.progress
        ) as bar:
            for batch, pixels in decoded(task.name, task.rows, self.batch_size, self.model.config, pool):
                parts.append(task.job(self.model, model_input(self.model, pixels), batch))
                bar.update(batch.num_rows)
        return join(parts)


def join(parts: Sequence[Arrays]) -> Arrays:
    """The results of consecutive batches as one."""
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def model_input(model: ContrastiveModel, pixels_BCHW: Tensor) -> Tensor:
    """Normalised pixels from uint8 ones, which travel to the model's device as they are."""
    parameter = next(model.parameters())
    return normalize(pixels_BCHW.to(parameter.device), parameter.dtype, model.config.preprocessing)


def decoded(
    name: str,
    rows: pa.Table,
    batch_size: int,
    config: ModelConfig,
    pool: ThreadPoolExecutor,
    first_row: int = 0,
    batches: slice = slice(None),
) -> Iterator[tuple[pa.Table, Tensor]]:
    """The chosen batches with their pixels (uint8 [B, 3, side, side]); the pool is one batch ahead of the caller.

    The name of the set and the first of its rows that is in `rows` are for messages.
    """

    def submit(start: int) -> list[Future[Tensor]]:
        found = rows["image"].slice(start, batch_size).to_pylist()
        places = (f"evaluation set {name}, row {row}" for row in count(first_row + start))
        side, preprocessing = config.vision.image_size, config.preprocessing
        return [
            pool.submit(decode, image, side, where, preprocessing) for image, where in zip(found, places, strict=False)
        ]

    starts = range(0, rows.num_rows, batch_size)[batches]
    ahead = submit(starts[0]) if starts else []
    for start in starts:
        current, ahead = ahead, submit(start + starts.step)
        yield rows.slice(start, batch_size), torch.stack([future.result() for future in current])


def decode(
    image: bytes | dict[str, Any], image_size: int, where: str, preprocessing: PreprocessConfig = OPENAI
) -> Tensor:
    """Pixels of an image, given its bytes or a reference to them: uint8 [3, side, side].

    Raises ValueError, saying where, for one that cannot be read.
    """
    try:
        return evaluation_transform(image_references.encoded(image), image_size, preprocessing)
    except (DecodeError, OSError) as error:
        raise ValueError(f"{where}: the image cannot be used ({error})") from error


def encode_texts(model: ContrastiveModel, texts: Sequence[str], batch_size: int = 256) -> TextFeatures:
    """Features of captions, on the model's device.

    Batches are made of captions of similar length, since the tower runs to the longest of a batch.
    """
    device = next(model.parameters()).device
    order = sorted(range(len(texts)), key=lambda i: len(texts[i]))
    parts = []
    for start in range(0, len(order), batch_size):
        token_ids = tokenize([texts[i] for i in order[start : start + batch_size]], model.config.text.context_length)
        parts.append(model.encode_text(token_ids))
    inverse = torch.empty(len(order), dtype=torch.long)
    inverse[torch.tensor(order)] = torch.arange(len(order))
    return take(concatenate(parts), inverse.to(device))


def take(features: Features, index: Tensor) -> Features:
    """The features of the samples at `index` (int64, on the features' device)."""
    return type(features)(*(tensor[index] for tensor in features))


def to_arrays(features: ImageFeatures) -> Arrays:
    """Features as arrays named by field, which tell their type."""
    return {name: tensor.float().cpu().numpy() for name, tensor in features._asdict().items()}


def from_arrays(arrays: Arrays, device: torch.device) -> ImageFeatures:
    kind = next(kind for kind in (Pooled, Mixture, Query) if set(kind._fields) == set(arrays))
    return kind(**{name: torch.from_numpy(array).to(device) for name, array in arrays.items()})


class KeepFeatures:
    """The job that returns the features themselves."""

    def __call__(self, model: ContrastiveModel, pixels_BCHW: Tensor, rows: pa.Table) -> Arrays:
        return to_arrays(model.encode_image(pixels_BCHW))


def scores(
    model: ContrastiveModel, images: ImageFeatures, texts: TextFeatures | Message, images_at_once: int = 64
) -> Tensor:
    """Cosines of every image and caption `[B, T]`, with few images at work at a time.

    Raises ValueError where one is not a number.
    """
    blocks = [
        model.pair_scores(batch_slice(images, slice(start, start + images_at_once)), texts)
        for start in range(0, len(images[0]), images_at_once)
    ]
    score_BT = torch.cat(blocks).float()
    if not torch.isfinite(score_BT).all():
        raise ValueError("the model gives scores that are not finite: its weights are broken")
    return score_BT
