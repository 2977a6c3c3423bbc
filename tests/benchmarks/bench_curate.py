"""Curation of captions from a pool on disk to a curated one, against the matcher alone on as many cores.

    uv run python tests/benchmarks/bench_curate.py                                        # 400,000 rows
    uv run python tests/benchmarks/bench_curate.py --rows 30000000 --rounds 1              # thirty million: 10 minutes

Each row is a caption of about 54 characters and an address; 500,000 entries, t from the tail share.
Time is a fixed part (the list of entries, its index, the plan of each pass, the data card) and a part that grows with
the pool: rates are slopes between a pool and a tenth of it, the fixed part what is left over. CPU time is that of
all processes, Ray's own among them, so that other programs of the machine weigh little. The matcher's own rate is that
of `match` on the first million of these captions in one process, in CPU time, the median over files of 100,000 before
and after each number of workers. The peak memory of each kind of process is that of a first, untimed curation of the
small pool, then of the large one: it does not grow.
"""

import json
import os
import shutil
import sys
import tempfile
import threading
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from multiprocessing import get_context
from pathlib import Path
from statistics import median

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import tyro

sys.path.insert(0, str(Path(__file__).parent))
from bench_match import make_entries, words, zipf

from pipelines.curate import Curate, curate
from pipelines.stages.match import EntryMatcher

FILE_ROWS = 100_000


@dataclass(frozen=True, kw_only=True)
class Bench:
    """How much is curated."""

    rows: int = 400_000
    """Rows of the pool."""
    workers: tuple[int, ...] = (1, 2)
    """Numbers of workers that take turns."""
    rounds: int = 3
    """Timed curations of either pool, whose median counts."""
    partition_rows: int = Curate(pool="").partition_rows
    """Rows of a partition."""


def write_pool(folder: Path, rows: int) -> None:
    """Parquet files with one caption a row."""
    folder.mkdir()
    rng, vocabulary = np.random.default_rng(1), words()
    for start in range(0, rows, FILE_ROWS):
        count = min(FILE_ROWS, rows - start)
        drawn = np.array(zipf(vocabulary, rng, count * 10), object).reshape(count, 10)
        lengths = rng.integers(4, 11, count)
        captions = [" ".join(of_row[:n]) for of_row, n in zip(drawn, lengths, strict=True)]
        table = pa.table(
            {
                "id": [f"{start + i:09d}" for i in range(count)],
                "url": [f"https://example.com/images/{start + i:09d}.jpg" for i in range(count)],
                "caption": captions,
            }
        )
        pq.write_table(table, folder / f"{start:09d}.parquet", row_group_size=10_000)


@contextmanager
def watching() -> Iterator[dict[str, int]]:
    """The largest resident set by kind of process while the block runs, bytes."""
    peaks: dict[str, int] = defaultdict(int)
    done = threading.Event()

    def watch() -> None:
        while not done.wait(0.2):
            for process in [psutil.Process(), *psutil.Process().children(recursive=True)]:
                with suppress(psutil.Error):  # it has just ended
                    memory, kind = process.memory_info(), kind_of(process)
                    peaks[kind] = max(peaks[kind], memory.rss - memory.shared)

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield peaks
    finally:
        done.set()
        thread.join()


def kind_of(process: psutil.Process) -> str:
    """The driver, Ray's workers, whatever they do at the moment, and the rest by name."""
    if process.pid == os.getpid():
        return "driver"
    title = (process.cmdline() or [process.name()])[0]
    working = title.startswith(("ray::Map", "ray::_total", "ray::IDLE"))
    return "worker" if working else title.split("/")[-1][:24]


def captions_of(pool: Path) -> list[pa.StringArray]:
    """Those of the first files of a pool, up to a million."""
    return [pq.read_table(f)["caption"].combine_chunks() for f in sorted(pool.iterdir())[: 1_000_000 // FILE_ROWS]]


def matcher_rates(matcher: EntryMatcher, files: list[pa.StringArray]) -> list[float]:
    """Captions a second on one core, of each file."""
    rates = []
    for captions in files:
        started = time.process_time()
        matcher.match(captions)
        rates.append(len(captions) / (time.process_time() - started))
    return rates


def machine_scaling(matcher: EntryMatcher, pool: Path, workers: int) -> list[float]:
    """How many times as fast the matcher alone is in `workers` processes as in one: what this machine's cores allow."""

    def seconds(processes: int) -> float:
        children = [fork.Process(target=match, args=(matcher, captions)) for _ in range(processes)]
        started = time.perf_counter()
        for child in children:
            child.start()
        for child in children:
            child.join()
        return time.perf_counter() - started

    fork, captions = get_context("fork"), captions_of(pool)[0]
    return sorted(workers * seconds(1) / seconds(workers) for _ in range(5))


def match(matcher: EntryMatcher, captions: pa.StringArray) -> None:
    for _ in range(20):
        matcher.match(captions)


def cpu_seconds() -> float:
    """Of this process and those that it started."""
    total = 0.0
    for process in [psutil.Process(), *psutil.Process().children(recursive=True)]:
        with suppress(psutil.Error):  # it has just ended
            total += sum(process.cpu_times()[:2])
    return total


def curated_seconds(settings: Curate, home: Path, workers: int, rounds: int) -> dict[str, np.ndarray]:
    """Median (wall, CPU) time of curating each pool, after a first curation whose peak memory is printed."""
    import ray

    def curated(pool: str) -> np.ndarray:
        before = np.array([time.perf_counter(), cpu_seconds()])
        curate(replace(settings, pool=str(home / pool), output=str(home / "out/curated")))
        spent = np.array([time.perf_counter(), cpu_seconds()]) - before
        shutil.rmtree(home / "out")
        return spent

    ray.init(address="local", num_cpus=workers, include_dashboard=False, log_to_driver=False)
    for pool in ("tenth", "pool"):
        with watching() as peaks:
            curated(pool)
        largest = sorted(peaks.items(), key=lambda item: -item[1])[:4]
        print(
            f"{workers} workers, {pool}: peak memory of its own of a "
            + ", ".join(f"{kind} {size / 2**20:,.0f} MiB" for kind, size in largest)
        )
    spent: dict[str, list[np.ndarray]] = defaultdict(list)
    for _ in range(rounds):
        for pool in ("tenth", "pool"):
            spent[pool].append(curated(pool))
    ray.shutdown()
    return {pool: np.median(times, axis=0) for pool, times in spent.items()}


def measure(bench: Bench) -> dict[int, float]:
    """Rows a second for each number of workers; prints a table."""
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        entries = make_entries(words(), np.random.default_rng(0))
        (home / "entries.json").write_text(json.dumps(entries))
        write_pool(home / "pool", bench.rows)
        write_pool(home / "tenth", bench.rows // 10)
        matcher = EntryMatcher(entries)
        settings = Curate(pool="", metadata=str(home / "entries.json"), partition_rows=bench.partition_rows)
        for processes in set(bench.workers) - {1}:
            ratios = machine_scaling(matcher, home / "pool", processes)
            print(
                f"{processes} processes of the matcher alone are {median(ratios):.2f} times as fast as one"
                f" ({ratios[0]:.2f} – {ratios[-1]:.2f})"
            )
        rates, captions = {}, captions_of(home / "pool")
        for workers in bench.workers:
            before = matcher_rates(matcher, captions)
            seconds = curated_seconds(settings, home, workers, bench.rounds)
            alone = median(before + matcher_rates(matcher, captions))
            wall, cpu = (bench.rows - bench.rows // 10) / (seconds["pool"] - seconds["tenth"])
            fixed, fixed_cpu = seconds["pool"] - bench.rows / np.array([wall, cpu])
            rates[workers] = wall
            share, share_cpu = wall / alone / workers, cpu / alone
            print(f"{workers} workers: {wall:,.0f} rows/s after {fixed:.1f} s, {share:.1%} of the matcher alone")
            print(f"  {cpu:,.0f} rows a CPU second after {fixed_cpu:.1f}, {share_cpu:.1%} of its {alone:,.0f} captions")
        return rates


if __name__ == "__main__":
    found = measure(tyro.cli(Bench))
    if {1, 2} <= found.keys():
        print(f"2 workers are {found[2] / found[1]:.2f} times as fast as 1")
