"""Counts by entry: arrays that are summed by hand over units of work, where a groupby would move every match."""

from collections.abc import Callable, Sequence

import numpy as np
import pyarrow as pa
from numba import types

from pipelines.stages.compiled import In, Out, jit
from pipelines.stages.work import intermediate
from pipelines.stages.work.partitions import Unit

GROUPS, GROUP = 64, 8
"""Most tasks that counts are summed in, each of which returns one count an entry, and the fewest units of each."""


def total(units: Sequence[Unit], entries_of: Callable[[Unit], np.ndarray], entries: int) -> np.ndarray:
    """How often each entry occurs in what `entries_of` gives for all units (int [N] of entry ids), int64 [E]."""
    import ray

    tasks = min(GROUPS, -(-len(units) // GROUP))
    groups = [list(units[i::tasks]) for i in range(tasks)]
    add = ray.remote(_total)
    return np.sum(ray.get([add.remote(group, entries_of, entries) for group in groups]), axis=0)


def _total(units: Sequence[Unit], entries_of: Callable[[Unit], np.ndarray], entries: int) -> np.ndarray:
    counts = np.zeros(entries, np.int64)
    for unit in units:
        _add(entries_of(unit), counts)
    return counts


@jit(types.void(In.int32, Out.int64))
def _add(entries, counts):
    for entry in entries:  # a unit matches few of them: np.bincount would pass over all
        counts[entry] += 1


def write(folder: str, name: str, values: np.ndarray) -> None:
    """Write numbers, one after another."""
    intermediate.write(folder, name, pa.table({"number": values}))


def read(uri: str) -> np.ndarray:
    """The numbers that `write` wrote."""
    return intermediate.read(uri).column(0).to_numpy()
