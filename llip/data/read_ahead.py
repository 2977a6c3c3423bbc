"""Row groups read before they are needed."""

from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
from numpy.typing import NDArray

from llip.data.mixed_order import MixedOrder
from llip.data.order import SampleOrder, Samples
from llip.data.shards import RowGroup, ShardSets

_THREADS = 8
"""Enough to hide an object store's latency; local reads need few of them."""


class ReadAhead:
    """Hands out the samples of step after step with their row groups, which it began to read `steps` steps earlier.

    A row group is read once while consecutive steps need it, and let go after the last of them.
    """

    def __init__(
        self,
        shards: ShardSets,
        order: SampleOrder | MixedOrder,
        lanes: NDArray[np.int64],
        step: int,
        *,
        steps: int,
    ) -> None:
        self._shards = shards
        self._order = order
        self._lanes = lanes
        self._next = step
        self._requested = step
        self._steps = steps
        self._queue: list[Samples] = []
        self._reads: dict[int, Future[RowGroup]] = {}
        self._last_step: dict[int, int] = {}
        self._pool = ThreadPoolExecutor(_THREADS, thread_name_prefix="read")

    def advance(self) -> tuple[Samples, dict[int, Future[RowGroup]]]:
        """The samples of the next step, and the row groups they lie in."""
        while self._requested <= self._next + self._steps:
            self._request(self._requested)
            self._requested += 1
        samples = self._queue.pop(0)
        groups = {g: self._reads[g] for g in np.unique(samples.group).tolist()}
        for g in groups:
            if self._last_step[g] == self._next:
                del self._reads[g], self._last_step[g]
        self._next += 1
        return samples, groups

    def _request(self, step: int) -> None:
        samples = self._order.samples(step, self._lanes)
        self._queue.append(samples)
        for g in np.unique(samples.group).tolist():
            if g not in self._reads:
                self._reads[g] = self._pool.submit(self._shards.read, g)
            self._last_step[g] = step

    def close(self) -> None:
        """Stop reading."""
        self._pool.shutdown(wait=True, cancel_futures=True)
