"""The order of samples: a pure function of (row groups, weights, seed, step), the same for every number of ranks.

Each epoch shuffles the row groups and shuffles the rows inside each. Laid end to end they are one stream, which is cut
into `lanes` equal parts. A step takes the next `batch_size / lanes` samples of every lane. An epoch has `samples //
batch_size` steps, so a batch never holds a sample twice; the fewer than `batch_size` samples at the end of the stream
are left out, others in each epoch.

Rank r of R reads the lanes r, r + R, …, so ranks share the lanes as evenly as they divide: the local batches of any R
up to `lanes`, of two sizes at most, make up the same global batch. A lane border may lie inside a row group, which two
lanes then read; so lanes may outnumber the row groups.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from llip.config import DataConfig
from llip.data import draws

BLOCK = 1000
"""Weights count in steps of one in so many."""


def lanes_of(rank: int, world_size: int, lanes: int) -> NDArray[np.int64]:
    """Lanes that a rank reads. Raises ValueError for more ranks than lanes, since every rank has to have one."""
    if world_size > lanes:
        raise ValueError(f"there are {world_size} ranks; data.lanes {lanes} has to be at least that")
    return np.arange(rank, lanes, world_size)


def images_by_rank(config: DataConfig, world_size: int) -> list[int]:
    """Images of a step that each rank reads."""
    of_lane = config.batch_size // config.lane_count
    return [of_lane * len(lanes_of(rank, world_size, config.lane_count)) for rank in range(world_size)]


@dataclass(frozen=True)
class Samples:
    """Places of samples, lane after lane."""

    epoch: NDArray[np.int64]
    """Epoch in which its set is read: that of the step, but where sets are mixed."""
    group: NDArray[np.int64]
    """Row group, numbered through all files."""
    row: NDArray[np.int64]
    """Row inside the row group."""


class SampleOrder:
    """Samples that a step reads.

    `group_rows` holds the rows of every row group. Raises ValueError where there are fewer samples than `batch_size`.
    """

    def __init__(self, group_rows: NDArray[np.int64], *, batch_size: int, lanes: int, seed: int) -> None:
        samples = int(group_rows.sum())
        if samples < batch_size:
            raise ValueError(f"there are {samples} samples; data.batch_size {batch_size} has to be at most that")
        self.group_rows = group_rows
        self.seed = seed
        self.samples_per_lane = batch_size // lanes
        """Samples that a step takes of a lane."""
        self.steps_per_epoch = samples // batch_size
        self._epoch_stream = lru_cache(maxsize=2)(self._shuffle)  # reading ahead looks into the next epoch

    def _shuffle(self, epoch: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """The row groups in the order of an epoch, and where each ends in its stream."""
        groups = draws.permutation(len(self.group_rows), self.seed, draws.ROW_GROUPS, epoch)
        return groups, np.cumsum(self.group_rows[groups])

    def samples(self, step: int, lanes: NDArray[np.int64]) -> Samples:
        """The samples of some lanes at a step, `samples_per_lane` of each."""
        epoch, step = divmod(step, self.steps_per_epoch)
        starts = (lanes * self.steps_per_epoch + step) * self.samples_per_lane
        places = (starts[:, None] + np.arange(self.samples_per_lane)).ravel()
        return Samples(np.full(len(places), epoch), *self.locate(epoch, places))

    def locate(self, epoch: int, places: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Row group and row of some places of the stream of an epoch."""
        groups, ends = self._epoch_stream(epoch)
        index = np.searchsorted(ends, places, side="right")
        group = groups[index]
        shuffled = places - ends[index] + self.group_rows[group]
        row = np.empty_like(shuffled)
        for g in np.unique(group).tolist():
            here = group == g
            row[here] = draws.permutation(int(self.group_rows[g]), self.seed, draws.ROWS, epoch, g)[shuffled[here]]
        return group, row


class MixedOrder:
    """Samples that a step reads, of sets with `group_rows` of their own; row groups are numbered through all sets.

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
