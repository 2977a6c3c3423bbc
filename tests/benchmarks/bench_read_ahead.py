"""Reading shards ahead over S3 with latency: how long a step waits for its batch, against shards on the local disk.

    uv run tests/benchmarks/bench_read_ahead.py

A consumer takes a batch of 64 photographs and then leaves the processor alone, as an accelerator's step does. The
service is moto behind a proxy that holds back every answer by the latency. The second column is what a step would wait
for if it read its row group itself: the time of one row group, read alone.
"""

import os
import sys
import tempfile
import time
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, median

import fsspec
import pytest
import tyro

from llip import storage
from llip.config import DataConfig
from llip.data.loader import LaneLoader
from llip.data.shards import ShardSets

sys.path.insert(0, str(Path(__file__).parents[1]))
from bench_loader import BATCH, photos, rows
from helpers.faulty_store import failing
from helpers.s3 import s3_environment, service
from helpers.shard_folders import encode, write_shards


@dataclass(frozen=True, kw_only=True)
class Settings:
    step: float = 0.5
    """Seconds that a step takes without its batch."""
    steps: int = 30
    """Steps that are measured, the first not among them."""
    latencies: tuple[float, ...] = (0.02, 0.1, 0.3)
    """Seconds before every answer."""


def waits(shards: str, settings: Settings) -> list[float]:
    """Seconds that each step waits for its batch."""
    config = DataConfig(batch_size=BATCH, lanes=8, threads=1, prefetch=2)
    found = []
    with (
        LaneLoader(shards, config, image_size=224, context_length=77, seed=0) as loader,
        closing(loader.iter_from(0)) as batches,
    ):
        for _ in range(settings.steps + 1):
            started = time.perf_counter()
            next(batches)
            found.append(time.perf_counter() - started)
            time.sleep(settings.step)
    return found[1:]


def seconds_to_read(shards: str) -> float:
    """Median time of a row group whose file is open."""
    with closing(ShardSets((shards,), synthetic=False)) as sets:
        found = []
        for group in range(8):
            started = time.perf_counter()
            sets.read(group)
            found.append(time.perf_counter() - started)
    return median(found)


def measure(settings: Settings) -> dict[float, float]:
    """Mean wait of a step by latency, beyond that of the local disk, in shares of a step; prints a table."""
    result = {}
    print(f"{'':>16}{'waits for a batch':>20}{'a row group alone':>20}   share of a step of {settings.step:g} s")
    with tempfile.TemporaryDirectory() as folder, service(Path(folder) / "log") as endpoint:
        samples = rows([encode(p, "JPEG", quality=90) for p in photos(256, 341)], captions=1)
        local = write_shards(Path(folder) / "shards", samples, files=4, row_group_size=64)
        here = mean(waits(local, settings))
        print(f"{'local disk':>16}{here:>18.3f} s{seconds_to_read(local):>18.3f} s   {here / settings.step:.1%}")
        with failing(endpoint) as (slow, faults):
            os.environ |= s3_environment(slow)
            fsspec.get_filesystem_class("s3").clear_instance_cache()
            bucket = "s3://shards"
            storage.filesystem(bucket)[0].mkdir("shards")
            for file in storage.listing(local):
                storage.write_bytes(f"{bucket}/set/{Path(file).name}", Path(file).read_bytes())
            for faults.latency in settings.latencies:
                wait, alone = mean(waits(f"{bucket}/set", settings)), seconds_to_read(f"{bucket}/set")
                result[faults.latency] = (wait - here) / settings.step
                name = f"S3, {1e3 * faults.latency:.0f} ms"
                print(f"{name:>16}{wait:>18.3f} s{alone:>18.3f} s   {wait / settings.step:.1%}", flush=True)
    return result


@pytest.mark.bench
def test_a_step_does_not_wait_for_a_service_that_answers_late() -> None:
    with pytest.MonkeyPatch.context() as patch:
        for name, value in s3_environment("").items():
            patch.setenv(name, value)  # put back afterwards
        assert measure(Settings(latencies=(0.1,), steps=12))[0.1] <= 0.1


if __name__ == "__main__":
    measure(tyro.cli(Settings, description=__doc__))
