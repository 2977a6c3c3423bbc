"""An S3 service that fails while checkpoints are written: the run ends as if it had not."""

import logging
from collections.abc import Callable, Iterator
from dataclasses import replace

import fsspec
import pytest
from helpers.faults import survives
from helpers.faulty_store import Fault, Faults, failing
from helpers.short_runs import train_noted

from llip import storage
from llip.config import TrainingConfig

pytestmark = pytest.mark.slow


@pytest.fixture
def faults(s3_server: str, s3_bucket: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Faults]:
    with failing(s3_server) as (endpoint, faults):
        monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
        fsspec.get_filesystem_class("s3").clear_instance_cache()
        yield faults
    fsspec.get_filesystem_class("s3").clear_instance_cache()


@pytest.mark.parametrize(("fault", "times"), [("503", 2), ("reset", 2), ("slow", 100), ("503", 1000)])
def test_s3_fails_during_a_checkpoint(
    fault: Fault,
    times: int,
    faults: Faults,
    small: TrainingConfig,
    shards: str,
    s3_bucket: str,
    run_folder: Callable[[str], str],
    caplog: pytest.LogCaptureFixture,
    record_property: Callable[[str, object], None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(storage, "DELAYS", (0.1, 0.1))
    config = replace(small, keep_checkpoints=3)
    train_noted(config, shards, run_folder("whole"))

    def fails(method: str, path: str, _: int) -> Fault | None:
        """The first uploads to the folder of one checkpoint."""
        return fault if method == "PUT" and "step-00000004" in path and faults.failed < times else None

    faults.fault = fails
    with caplog.at_level(logging.WARNING, "llip"):
        train_noted(config, shards, f"{s3_bucket}/run")
    assert faults.failed
    folders = {uri.split("/")[-2] for uri in storage.listing(f"{s3_bucket}/run/checkpoints", "state.json")}
    outage = times == 1000
    assert folders == {f"step-0000000{step}" for step in (2, 4, 6) if step != 4 or not outage}
    assert ("step 4 was not written" in caplog.text) == outage
    ended = f"{'one checkpoint less' if outage else 'every checkpoint written'}; went on to the end"
    name = f"S3: {fault}, {faults.failed} requests of a checkpoint"
    survives(record_property, name, ended, run=f"{s3_bucket}/run", undisturbed=run_folder("whole"))
