"""Counts by entry: arrays that are summed by hand over partitions, where a groupby would move every match."""

from collections.abc import Callable, Sequence

import numpy as np
from numba import types

from pipelines.stages.compiled import In, Out, jit
from pipelines.stages.work.partitions import Partition

GROUPS, GROUP = 64, 8
"""Most tasks that counts are summed in, each of which returns one count an entry, and the fewest partitions of each."""


def total(partitions: Sequence[Partition], entries_of: Callable[[Partition], np.ndarray], entries: int) -> np.ndarray:
    """Occurrences of each entry in what `entries_of` gives for all partitions (int [N] of entry ids), int64 [E]."""
    import ray

    tasks = min(GROUPS, -(-len(partitions) // GROUP))
    groups = [list(partitions[i::tasks]) for i in range(tasks)]
    add = ray.remote(_total)
    return np.sum(ray.get([add.remote(group, entries_of, entries) for group in groups]), axis=0)


def _total(partitions: Sequence[Partition], entries_of: Callable[[Partition], np.ndarray], entries: int) -> np.ndarray:
    counts = np.zeros(entries, np.int64)
    for partition in partitions:
        _add(entries_of(partition), counts)
    return counts


@jit(types.void(In.int32, Out.int64))
def _add(entries, counts):
    for entry in entries:  # a partition matches few of them: np.bincount would pass over all
        counts[entry] += 1
