"""`pipelines/pretrain.py`, whose processes write down the samples that they train on: RUN/samples/STEP-PID.json.

python tests/helpers/noted_pretrain.py --output output --name run --workers 2
"""

import errno
import itertools
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

from llip import storage
from llip.data import shards
from llip.data.loader import Batch
from llip.training import loop
from pipelines import command, launching
from pipelines.pretrain import Pretrain, run_or_resubmit


@contextmanager
def noted(run_folder: str) -> Iterator[None]:
    """Write down the ids of every batch that this process trains on while the block runs."""
    parts = loop.parts

    def noting(batch: Batch, *rest: Any) -> Any:
        name = f"{batch.step:08d}-{os.getpid()}.json"
        storage.write_json(storage.join(run_folder, "samples", name), batch.sample_ids)
        return parts(batch, *rest)

    with mock.patch.object(loop, "parts", noting):
        yield


OUTAGE = "outage.json"


@contextmanager
def unreachable(run_folder: str, rank: int) -> Iterator[None]:
    """Let the shards be out of reach of one rank, from its n-th read on, for the seconds that RUN/outage.json gives:
    {"rank": 1, "after": 200, "seconds": 20}. Tries end after 31 seconds."""
    uri, table, reads, begun = storage.join(run_folder, OUTAGE), shards.Shards._table, itertools.count(), list[float]()
    outage: dict[str, Any] = storage.read_json(uri) if storage.exists(uri) else {"rank": None}

    def failing(self: shards.Shards, *of_group: Any) -> Any:
        if outage["rank"] == rank and next(reads) >= outage["after"]:
            begun.append(time.monotonic())
            if begun[-1] - begun[0] < outage["seconds"]:
                raise OSError(errno.EIO, "the shards are out of reach")
        return table(self, *of_group)

    with mock.patch.object(shards.Shards, "_table", failing), mock.patch.object(storage, "DELAYS", (1, 2, 4, 8, 16)):
        yield


def on_worker(config: dict[str, Any]) -> Any:
    """What one of the ranks does. It travels there as code, since it belongs to the main program."""
    import ray.train

    from pipelines.launching import _train_on_worker  # the worker's own, which is not replaced

    folder, rank = config["run"].folder, ray.train.get_context().get_world_rank()
    with noted(folder), unreachable(folder, rank):
        return _train_on_worker(config)


def main(settings: Pretrain) -> None:
    with (
        noted(storage.join(settings.output, "runs", str(settings.name))),
        mock.patch.object(launching, "_train_on_worker", on_worker),
        mock.patch.object(launching, "RESIZE_SECONDS", 5.0),  # no test waits a minute for new nodes to be looked for
    ):
        run_or_resubmit(settings)


if __name__ == "__main__":
    command.run(Pretrain, main, "Pretrain, and write down the samples of every step.")
