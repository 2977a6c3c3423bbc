"""The runner of ranks that evaluate together, in training."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any, Protocol

from llip.contrastive import ContrastiveModel
from llip.evaluation.encode import Arrays, ImageTask, decoded, join, model_input


class Ranks(Protocol):
    """Ranks that evaluate together: `llip.training.parallel.World` is one implementation."""

    @property
    def rank(self) -> int: ...
    @property
    def size(self) -> int: ...
    def collect(self, value: Any) -> list[Any] | None: ...


@dataclass(frozen=True, kw_only=True)
class OverRanks:
    """Every rank does every `size`-th batch, the same batches as one process, and rank 0 gets the results.

    All ranks have to call it. Raises ValueError on rank 0 for an image that any rank cannot use.
    """

    model: ContrastiveModel
    ranks: Ranks
    batch_size: int = 64
    threads: int = 2

    def __call__(self, tasks: Sequence[ImageTask]) -> list[Arrays]:
        with ThreadPoolExecutor(self.threads) as pool:
            try:
                own: list[list[Arrays]] | ValueError = [self._do(task, pool) for task in tasks]
            except ValueError as error:  # the others wait for this rank
                own = error
        everyone = self.ranks.collect(own)
        if everyone is None:
            return []
        for of_rank in everyone:
            if isinstance(of_rank, ValueError):
                raise of_rank
        return [join(_in_turn([of_rank[index] for of_rank in everyone])) for index in range(len(tasks))]

    def _do(self, task: ImageTask, pool: ThreadPoolExecutor) -> list[Arrays]:
        share = slice(self.ranks.rank, None, self.ranks.size)
        return [
            task.job(self.model, model_input(self.model, pixels), rows)
            for rows, pixels in decoded(task.name, task.rows, self.batch_size, self.model.config, pool, batches=share)
        ]


def _in_turn(parts: list[list[Arrays]]) -> list[Arrays]:
    """The first part of every rank, then the second of every rank, and so on."""
    return [part for turn in zip_longest(*parts) for part in turn if part is not None]
