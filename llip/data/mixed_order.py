"""The order of samples of several sets, mixed by weights: a pure function of (row groups, weights, seed, step).

Every lane reads a stream of places, and each `BLOCK` of them belongs to the sets in exact proportion to the weights,
evenly spread at random; all lanes read the same stream from starts that are a part of a block apart. A set is shuffled
and cut into lanes as in `order`, and each lane goes through its part at the pace that the weights give it, epoch after
epoch. The number of a set's samples before any place is computed directly, so any step is reached at once.

Lanes reach the end of a set's epoch a few samples apart; a batch there may hold a sample twice.
"""

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from llip.data import draws
from llip.data.order import SampleOrder, Samples

BLOCK = 1000
"""Weights count in steps of one in so many."""


class MixedOrder:
    """Which samples a step reads, of sets with `group_rows` of their own; row groups are numbered through all sets.

    Raises ValueError for weights that are not one positive number a set, or too small to count, and for a set with
    fewer samples than lanes.
    """

    def __init__(
        self,
        group_rows: Sequence[NDArray[np.int64]],
        weights: Sequence[float],
        *,
        batch_size: int,
        lanes: int,
        seed: int,
    ) -> None:
        self.samples_per_lane = batch_size // lanes
        self.steps_per_epoch = sum(int(rows.sum()) for rows in group_rows) // batch_size
        """Steps that read as many samples as there are."""
        self._seed = seed
        self._counts = apportion(weights, len(group_rows))
        for index, rows in enumerate(group_rows):
            if rows.sum() < lanes:
                raise ValueError(
                    f"shards {index + 1} hold {rows.sum()} samples; data.lanes {lanes} has to be at most that"
                )
        self._sets = [
            SampleOrder(rows, batch_size=lanes, lanes=lanes, seed=int(draws.bits(seed, draws.SETS, index)[0]))
            for index, rows in enumerate(group_rows)
        ]
        self._first_group = np.cumsum([0, *map(len, group_rows)])
        self._block = lru_cache(maxsize=4)(self._shuffle)
        self._starts = np.arange(lanes) * BLOCK // lanes
        self._before = np.array(
            [np.bincount(self._block(0)[0][:start], minlength=len(weights)) for start in self._starts]
        )

    def _shuffle(self, block: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """The set of every place of a block, and how many of the set come before it in all blocks."""
        sets = np.repeat(np.arange(len(self._counts)), self._counts)
        turn = np.concatenate([np.arange(count) for count in self._counts])
        # One in each of as many equal spans as the set has places: no batch has much more or less than its share.
        time = (turn + draws.uniform(self._seed, draws.MIXTURE, block, np.arange(BLOCK))) / self._counts[sets]
        shuffled = sets[np.argsort(time, kind="stable")]
        before = np.empty(BLOCK, dtype=np.int64)
        for index, count in enumerate(self._counts.tolist()):
            before[shuffled == index] = block * count + np.arange(count)
        return shuffled, before

    def samples(self, step: int, lanes: NDArray[np.int64]) -> Samples:
        """The samples of some lanes at a step, `samples_per_lane` of each."""
        first = step * self.samples_per_lane + self._starts[lanes]
        blocks, inside = np.divmod((first[:, None] + np.arange(self.samples_per_lane)).ravel(), BLOCK)
        lane = np.repeat(lanes, self.samples_per_lane)
        sets, number = np.empty_like(blocks), np.empty_like(blocks)
        for block in np.unique(blocks).tolist():
            here = blocks == block
            sets[here], number[here] = (of_block[inside[here]] for of_block in self._block(block))
        number -= self._before[lane, sets]
        epoch, group, row = (np.empty_like(blocks) for _ in range(3))
        for index in np.unique(sets).tolist():
            order, of_set = self._sets[index], sets == index
            epoch[of_set], place = np.divmod(number[of_set], order.steps_per_epoch)
            place += lane[of_set] * order.steps_per_epoch
            for e in np.unique(epoch[of_set]).tolist():
                here = of_set & (epoch == e)
                group[here], row[here] = order.locate(e, place[epoch[of_set] == e])
            group[of_set] += self._first_group[index]
        return Samples(epoch, group, row)


def apportion(weights: Sequence[float], sets: int) -> NDArray[np.int64]:
    """Places of a block for each set: whole numbers nearest to the weights' shares that make up the block."""
    if len(weights) != sets or not all(weight > 0 for weight in weights):
        raise ValueError(
            f"data.weights are {tuple(weights)}; they have to be {sets} positive numbers, one for each set"
        )
    shares = np.asarray(weights, dtype=np.float64) / sum(weights) * BLOCK
    counts = np.floor(shares).astype(np.int64)
    counts[np.argsort(counts - shares, kind="stable")[: BLOCK - counts.sum()]] += 1
    if not counts.all():
        raise ValueError(f"data.weights {tuple(weights)} leave a set with less than 1 of {BLOCK} samples")
    return counts
