"""Compare runs: settings that differ, metrics beside chance, paired differences with intervals, and training curves.

    uv run pipelines/compare.py output/runs/first output/runs/second --output output/comparison

Runs that differ in nothing but the seed are one group; every group is compared with that of the first run, item by
item, and a sentence says what can be concluded. A run is named by its folder, by its id in MLflow, which knows the
folder, or as `runs:/ID`, which is read from MLflow alone. Leaves `comparison.html` and `comparison.md`.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

import tyro

from llip import storage
from pipelines import command

if TYPE_CHECKING:  # torch and Matplotlib are imported once the options are right, so that --help comes at once
    from pipelines.comparison import Comparison, RunRecord

RUNS = "runs:/"
"""Scheme of MLflow's runs."""


@dataclass(frozen=True, kw_only=True)
class Compare:
    """Runs to compare, and the folder of the pages."""

    runs: Annotated[tuple[str, ...], tyro.conf.Positional]
    """Run folders, ids of MLflow runs, or runs:/ID where the folder is out of reach."""
    tested: tuple[str, ...] = ()
    """Metrics to test besides the headline of each set, as `scenes_in_style/image_to_text_r1`."""
    output: str = "output/comparison"
    """Folder for comparison.html and comparison.md."""
    tracking: str | None = None
    """MLflow tracking URI for ids; MLFLOW_TRACKING_URI, or the database in ./output, where not given."""


def compare(settings: Compare) -> "Comparison":
    """Read the runs, write the pages and print the tables. Raises ValueError for a run that cannot be read."""
    from pipelines.comparison import Comparison, RunRecord

    folders = [None if run.startswith(RUNS) else _folder(run, settings.tracking) for run in settings.runs]
    runs = [
        RunRecord.read(folder) if folder else _tracked(run, settings.tracking)
        for run, folder in zip(settings.runs, folders, strict=True)
    ]
    comparison = Comparison(runs, settings.tested)
    output = storage.absolute(settings.output)
    storage.write_bytes(storage.join(output, "comparison.html"), comparison.html().encode())
    storage.write_bytes(storage.join(output, "comparison.md"), comparison.markdown().encode())
    print(f"{comparison.markdown()}\n{storage.join(output, 'comparison.html')}")
    if page := _in_mlflow([folder for folder in folders if folder]) if all(folders) else None:
        print(f"in MLflow    {page}")
    return comparison


def _in_mlflow(folders: Sequence[str]) -> str | None:
    """Address at which MLflow compares the runs; None where they are not all in one store."""
    from llip.runs.mlflow_writer import sqlite_file
    from llip.runs.tracking import tracking_of
    from pipelines import ui

    uris = {tracking.uri if (tracking := tracking_of(folder)) else None for folder in folders}
    uri = uris.pop()
    if uris or uri is None:
        return None
    file = sqlite_file(uri)
    return ui.address(uri, str(file.parent) if file else "", folders)


def _tracked(run: str, tracking: str | None) -> "RunRecord":
    """A run as MLflow has it."""
    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException

    from llip.runs.tracking import default_store
    from pipelines.comparison import RunRecord

    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    uri = tracking or default_store("output")[0]
    try:
        return RunRecord.tracked(MlflowClient(uri), run.removeprefix(RUNS))
    except MlflowException as error:
        raise ValueError(f"{run} is not the id of a run at {uri} ({error.message})") from error


def _folder(run: str, tracking: str | None) -> str:
    """The folder of a run. MLflow notes it in a tag of the runs that training made."""
    if storage.exists(run):
        return storage.absolute(run)
    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException

    from llip.runs.tracking import default_store

    uri = tracking or default_store("output")[0]
    try:
        tags = MlflowClient(uri).get_run(run).data.tags
    except MlflowException as error:
        raise ValueError(f"{run} is neither a folder nor the id of a run at {uri} ({error.message})") from error
    if "run_folder" not in tags:
        raise ValueError(f"MLflow run {run} has no tag run_folder: it was not made by training")
    return tags["run_folder"]


def cli() -> None:
    """The command line."""
    command.run(Compare, compare, "Compare runs side by side.")


if __name__ == "__main__":
    cli()
