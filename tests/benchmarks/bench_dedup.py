"""Finding near-duplicates among made-up fingerprints: the time for a million rows, and the memory of the process that
compares a bin, which should not grow with the pool.

    uv run tests/benchmarks/bench_dedup.py

Pools of 10,000 rows a partition; one row in ten is a near-duplicate (8 flipped bits of 256) of a row anywhere in
the pool, and one in a hundred is the same white image.
"""

import json
import multiprocessing
import resource
import tempfile
import time
from dataclasses import dataclass

import numpy as np
import tyro

from llip import storage
from pipelines.stages.dedup import duplicates
from pipelines.stages.dedup.duplicates import Level, Part
from pipelines.stages.options import Dedup
from pipelines.stages.work import spill

PARTITION_ROWS = 10_000


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What is measured."""

    rows: tuple[int, ...] = (100_000, 300_000, 1_000_000)
    """Sizes of pools."""
    distance: int = 8
    """Bits by which duplicates may differ."""


def prints_of(partition: int, rows: int) -> np.ndarray:
    """Fingerprints of a partition, uint64 [10,000, 1, 4]: a function of their numbers, so that none need memory."""
    numbers = np.arange(partition * PARTITION_ROWS, (partition + 1) * PARTITION_ROWS)
    original = np.where(
        numbers % 10 == 3, numbers * 7919 % rows // 10 * 10, numbers
    )  # those end in 0: no duplicate itself
    words = np.stack([splitmix(original * 4 + word) for word in range(4)], axis=1)
    flips = numbers % 10 == 3
    words[flips, 0] ^= splitmix(numbers[flips]) & np.uint64(0x0101010101010101)
    words[numbers % 100 == 50] = 0
    return words[:, None]


def splitmix(values: np.ndarray) -> np.ndarray:
    x = values.astype(np.uint64) + np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def measure(rows: int, distance: int, out: "multiprocessing.Queue[str]") -> None:
    """One size, in a process of its own: its highest memory is that of this size."""
    level: Level = duplicates.levels(Dedup(duplicates=True, distance=distance), rows)[1]
    partitions, bins = rows // PARTITION_ROWS, -(-rows * len(level.masks) // duplicates.BIN_RECORDS)
    with tempfile.TemporaryDirectory() as folder:
        start = time.process_time()
        sizes = []
        for partition in range(partitions):
            ranks = splitmix(np.arange(partition * PARTITION_ROWS, (partition + 1) * PARTITION_ROWS) + rows)
            uri = storage.join(folder, duplicates.spill_name("partition", partition))
            sizes.append(duplicates.scatter(uri, partition, prints_of(partition, rows), ranks, [level], bins)["bytes"])
        scattered = time.process_time() - start
        ends = spill.ends(sizes)
        files = [storage.join(folder, duplicates.spill_name("partition", partition)) for partition in range(partitions)]
        lost = 0
        for index in range(bins):
            part = Part(index=index, pieces=spill.pieces(files, ends, index, index))
            result = duplicates.compare_bin(part, folder=folder, levels=[level], duplicates=True, partitions=partitions)
            name = storage.join(folder, duplicates.spill_name("dropped", index))
            lost += sum(t.num_rows for t in spill.read([(name, 0, sum(result["bytes"]))]))
        compared = time.process_time() - start - scattered
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    out.put(json.dumps([bins, scattered, compared, peak, lost]))


def main(settings: Settings) -> None:
    print(f"distance {settings.distance}\n\n|      rows | bins | CPU s a million: scatter | compare | peak RSS, MiB |")
    print("| --------: | ---: | -----------------------: | ------: | ------------: |")
    context = multiprocessing.get_context("spawn")
    for rows in settings.rows:
        queue = context.Queue()
        process = context.Process(target=measure, args=(rows, settings.distance, queue))
        process.start()
        bins, scattered, compared, peak, _ = json.loads(queue.get())
        process.join()
        million = rows / 1e6
        print(f"| {rows:9,} | {bins:4} | {scattered / million:24.1f} | {compared / million:7.1f} | {peak:13.0f} |")


if __name__ == "__main__":
    main(tyro.cli(Settings))
