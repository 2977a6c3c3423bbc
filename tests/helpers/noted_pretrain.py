"""`pipelines/pretrain.py`, whose processes write down the samples that they train on: RUN/samples/STEP-PID.json.

python tests/helpers/noted_pretrain.py --output output --name run --workers 2
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

from llip import storage
from llip.data.loader import Batch
from llip.training import loop
from pipelines import command, launching
from pipelines.pretrain import Pretrain, pretrain


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


def on_worker(config: dict[str, Any]) -> Any:
    """What one of the ranks does. It travels there as code, since it belongs to the main program."""
    from pipelines.launching import _train_on_worker  # the worker's own, which is not replaced

    with noted(config["run"].folder):
        return _train_on_worker(config)


def main(settings: Pretrain) -> None:
    with (
        noted(storage.join(settings.output, "runs", str(settings.name))),
        mock.patch.object(launching, "_train_on_worker", on_worker),
        mock.patch.object(launching, "RESIZE_SECONDS", 5.0),  # no test waits a minute for new nodes to be looked for
    ):
        pretrain(settings)


if __name__ == "__main__":
    command.run(Pretrain, main, "Pretrain, and write down the samples of every step.")
