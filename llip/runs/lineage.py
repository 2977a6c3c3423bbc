"""Lineage of runs and folders: runs of MLflow that name the runs before them, and are named there."""

from collections.abc import Sequence
from typing import Any, NamedTuple

from llip import storage

NOTE, FILE = "mlflow.note.content", "tracking.json"
"""Tag of a run's description; the file in a folder that says which run made it."""


class Maker(NamedTuple):
    """The run that made a folder."""

    name: str
    run_id: str
    experiment_id: str

    def __str__(self) -> str:
        return link(self.name, self.experiment_id, self.run_id)


def link(name: str, experiment_id: str, run_id: str) -> str:
    """A link in Markdown to a run, as it works in a description on any server."""
    return f"[{name}](#/experiments/{experiment_id}/runs/{run_id})"


def makers(folders: Sequence[str], uri: str) -> list[Maker]:
    """The runs that made folders, those that are tracked at `uri`."""
    found = []
    for folder in folders:
        file = storage.join(folder, FILE)
        if storage.exists(file) and (known := storage.read_json(file))["tracking"]["uri"] == uri:
            found.append(Maker(known["tracking"]["run_name"], known["run_id"], known["experiment_id"]))
    return found


def note_use(client: Any, folders: Sequence[str], uri: str, user: Maker) -> None:
    """Say in the description of the runs that made folders that another run uses them."""
    line = f"- used by {user}"
    for maker in makers(folders, uri):
        text = client.get_run(maker.run_id).data.tags.get(NOTE, "")
        if line not in text:
            client.set_tag(maker.run_id, NOTE, f"{text.rstrip()}\n\n{line}\n" if text else f"{line}\n")
