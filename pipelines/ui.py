"""Show the runs of a project in MLflow: start it on their store, and print the page to open.

    uv run pipelines/ui.py                                          # the runs in ./output
    uv run pipelines/ui.py output/runs/first output/runs/second     # two of them side by side

Where MLFLOW_TRACKING_URI names a server, nothing is started: the page is there.
"""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import IO, Annotated
from urllib.error import URLError
from urllib.request import urlopen

import tyro

from llip import storage
from llip.fields import setting
from llip.runs import notebook
from llip.runs.mlflow_writer import sqlite_file
from llip.runs.tracking import EXPERIMENT, default_store, run_id_of
from pipelines import command

SECONDS_TO_START = 300


@dataclass(frozen=True, kw_only=True)
class Ui:
    """Store to show, and the server's address."""

    runs: Annotated[tuple[str, ...], tyro.conf.Positional] = ()
    """Run folders to compare; one opens that run, none the table of all."""
    output: str = setting("output", metavar="FOLDER")
    """Folder that the runs were made in."""
    host: str = "127.0.0.1"
    """Address to listen at; others than this machine need no password either."""
    port: int = 5000


def ui(settings: Ui) -> None:
    """Serve until interrupted. Raises ValueError where there are no runs yet."""
    uri = default_store(storage.absolute(settings.output))[0]
    file = sqlite_file(uri)
    if file is not None and not file.exists():
        raise ValueError(f"{file} does not exist: nothing was tracked in --output {settings.output} yet")
    page = _page(uri, settings.runs)
    if file is None:
        print(page(uri))
        return
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(command.STOPPED))  # else the server would outlive this process
    with serving(uri, settings.host, settings.port, None) as (server, process):
        print(f"\n{page(server)}\n\nCtrl-C ends it.", flush=True)
        try:
            process.wait()
        except KeyboardInterrupt:
            print()


def _page(uri: str, runs: Sequence[str]) -> "Page":
    """Page to open, asked of the store before anything is started."""
    from mlflow import MlflowClient

    client = MlflowClient(uri)
    ids = [run_id_of(run) for run in runs]
    if ids:
        experiments = [client.get_run(run).info.experiment_id for run in ids]
    else:
        found = client.get_experiment_by_name(EXPERIMENT)
        if found is None:
            raise ValueError(f"{uri} has no experiment {EXPERIMENT}: no run was tracked there yet")
        experiments = [found.experiment_id]
    return Page(tuple(experiments), tuple(ids))


@dataclass(frozen=True)
class Page:
    """A page of MLflow on any server that has the store."""

    experiments: tuple[str, ...]
    runs: tuple[str, ...]

    def __call__(self, server: str) -> str:
        if len(self.runs) > 1:
            return notebook.comparison_page(server, self.experiments, self.runs)
        return notebook.experiment_page(server, self.experiments[0], "runs", *self.runs)


def address(uri: str, output: str, runs: Sequence[str] = ()) -> str:
    """A page to open where `uri` is a server, else the command that starts one on the store in `output`."""
    if sqlite_file(uri) is None:
        try:
            return _page(uri, runs)(uri)
        except Exception:  # a server that is dead now
            return uri
    options = " ".join([*runs, "--output", output])
    return f"uv run pipelines/ui.py {options}"


@contextmanager
def serving(
    store: str, host: str, port: int, log: IO[str] | None, *options: str
) -> "Iterator[tuple[str, subprocess.Popen[bytes]]]":
    """URL and process of an MLflow server that shows a store, for as long as the block lasts; `log` gets what it says.

    Raises ValueError where it does not start.
    """
    words = [sys.executable, "-m", "mlflow", "server", "--backend-store-uri", store, "--workers", "1", *options]
    environment = os.environ | {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"}
    output = subprocess.DEVNULL if log is None else log
    server = subprocess.Popen(
        [*words, "--host", host, "--port", str(port)], env=environment, stdout=output, stderr=output
    )
    try:
        url = f"http://{host}:{port}"
        _wait(url, server)
        yield url, server
    finally:
        server.terminate()
        server.wait(30)


def _wait(url: str, server: "subprocess.Popen[bytes]") -> None:
    deadline = time.monotonic() + SECONDS_TO_START
    while True:
        try:
            with urlopen(f"{url}/health"):
                return
        except URLError as error:
            if server.poll() is not None or time.monotonic() > deadline:
                raise ValueError(f"MLflow does not start at {url}; is its --port taken?") from error
            time.sleep(0.3)


def cli() -> None:
    """The command line."""
    command.run(Ui, ui, "Show the runs of a project in MLflow.")


if __name__ == "__main__":
    cli()
