"""Fixtures of the whole suite. Ray and servers start once a session, on 127.0.0.1, and end with it."""

import functools
import os
import shutil
import sys
import uuid

# Tests start hundreds of interpreters: one that compiles PyTorch, Ray and MLflow anew takes twice as long to start.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("RAY_AUTH_MODE", "disabled")
os.environ.setdefault("RAY_ENABLE_UV_RUN_RUNTIME_ENV", "0")
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("TRITON_INTERPRET", "1")  # asked when a kernel is defined: no test needs a GPU

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from helpers.s3 import s3_environment, service
from hypothesis import settings
from xdist.scheduler import LoadScopeScheduling

from llip import lease

# One change, one result: a failure is of what was changed. No deadline: the first call of compiled code is slow.
settings.register_profile("repeatable", derandomize=True, deadline=None)
settings.load_profile("repeatable")


CPUS = 3
"""Of the session's Ray: two for the actors of a test and one for the tasks that feed them. Each worker imports for five
seconds of a core."""


class ByFiles(LoadScopeScheduling):  # type: ignore[misc]  # xdist has no types
    """Gives each process whole files, and one process all of those that need Ray, or ranks: one cluster is enough, and
    one process that ranks are forked from."""

    def _split_scope(self, nodeid: str) -> str:
        file = nodeid.split("::", 1)[0]
        return _shared(self.config.rootpath / file) or file


@functools.cache
def _shared(file: Path) -> str:
    """The word in a file that says with which others it shares a process."""
    return next((word for word in ("ray_session", "forkserver") if word in file.read_text()), "")


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> ByFiles:
    return ByFiles(config, log)


def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """Two processes take a whole suite, whose tests wait for other processes half of the time; one takes fewer tests,
    and those whose processes need all cores."""
    whole = config.args_source is pytest.Config.ArgsSource.TESTPATHS and config.option.markexpr != "soak"
    return 2 if whole else 0


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    """Tests share few cores with workers of their own."""
    import torch  # not where pytest only hands tests out

    torch.set_num_threads(1)


@pytest.fixture(scope="session", autouse=True)
def no_rivals() -> None:
    """Leases in a bucket are taken without waiting for others that take them at the same moment."""
    lease.SETTLE_SECONDS = 0.05


@pytest.fixture(scope="session")
def s3_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """An S3 service in a process of its own, which other processes reach too; the URL of its endpoint."""
    with service(tmp_path_factory.mktemp("moto") / "log") as endpoint:
        yield endpoint


@pytest.fixture(scope="session")
def ray_session(s3_server: str) -> Iterator[None]:
    """One local Ray cluster for every test that needs processes; its workers know the S3 service."""
    import ray
    from ray.train.v2._internal.callbacks.placement_group_callback import PlacementGroupCleanerCallback

    # Ray Train asks a dashboard, which is not there, and would wait 12 s for an answer at the end of a run.
    PlacementGroupCleanerCallback.__init__.__defaults__ = (1.0, 1, 1.0)
    with pytest.MonkeyPatch.context() as patch:
        for name, value in s3_environment(s3_server).items():
            patch.setenv(name, value)
        for last in (False, False, True):
            try:
                ray.init(address="local", num_cpus=CPUS, include_dashboard=False, log_to_driver=False)
                break
            except Exception:  # Ray gives its node 30 s to start, however busy the machine
                ray.shutdown()
                if last:
                    raise
    yield
    ray.shutdown()


@pytest.fixture
def s3_bucket(s3_server: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """URI of a fresh bucket."""
    import fsspec

    for name, value in s3_environment(s3_server).items():
        monkeypatch.setenv(name, value)
    fsspec.get_filesystem_class("s3").clear_instance_cache()
    bucket = f"test-{uuid.uuid4().hex}"
    fsspec.filesystem("s3").mkdir(bucket)
    return f"s3://{bucket}"


@pytest.fixture(scope="session")
def empty_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file with MLflow's tables and no run, to be copied: making them takes seconds."""
    from mlflow import MlflowClient

    file = tmp_path_factory.mktemp("tables") / "mlflow.db"
    MlflowClient(f"sqlite:///{file}").search_experiments()
    return file


@pytest.fixture(scope="session")
def mlflow_store(empty_database: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """Tracking URI of one database for tests that need any."""
    from mlflow import MlflowClient

    folder = tmp_path_factory.mktemp("mlflow")
    shutil.copy(empty_database, folder)
    uri = f"sqlite:///{folder}/mlflow.db"
    MlflowClient(uri).create_experiment("llip", artifact_location=str(folder / "artifacts"))
    return uri
