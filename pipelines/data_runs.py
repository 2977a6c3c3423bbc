"""Curation and sharding as runs of MLflow: what was read and made, with digests, settings and counts."""

import os
from collections.abc import Mapping
from typing import Any

from llip import storage
from llip.data import manifest
from llip.data.manifest import Manifest
from llip.runs import lineage
from llip.runs.mlflow_writer import sqlite_file
from llip.runs.notebook import Data, context_tags
from llip.runs.run_folder import files_digest
from llip.runs.tracking import Tracker, Tracking, default_store, tracking_of


def track(folder: str, kind: str, documents: Mapping[str, dict[str, Any] | str], *, output: str | None = None) -> None:
    """The run of a finished folder, unless it has one.

    It goes to the store of `output`; without one, to that of the folder's own place, where there is a store already.
    """
    store = default_store(output) if output else store_beside(folder)
    if store is None:
        return
    uri, artifacts = store
    known = tracking_of(folder)
    if known is not None and known.uri == uri:
        return
    made = manifest.read(folder, kind)
    read = [place for places in made.source.values() for place in places.split(", ")]
    tracking = Tracking(
        uri=uri,
        run_name=_name(folder) if kind in _name(folder) else f"{kind} {_name(folder)}",
        artifact_location=artifacts,
        tags=context_tags() | {"stage": kind},
        made_from=tuple(read),
    )
    own = Data(name=_name(folder), digest=files_digest(made), uri=folder, rows=made.rows, context="output")
    with Tracker(tracking, folder) as tracker:
        tracker.parameters({**made.config, "summary": made.summary})
        tracker.inputs([*(_input(place, made) for place in read), own])
        tracker.tags({lineage.NOTE: _note(made, read, uri)})
        for name, content in documents.items():
            tracker.artifact(name, content)


def store_beside(folder: str) -> tuple[str, str | None] | None:
    """Tracking URI and artifact location for a folder: where MLflow is named or has a database beside it."""
    uri, artifacts = default_store(storage.absolute(folder).rstrip("/").rpartition("/")[0])
    file = sqlite_file(uri)
    return (uri, artifacts) if "MLFLOW_TRACKING_URI" in os.environ or (file and file.exists()) else None


def _name(folder: str) -> str:
    return folder.rstrip("/").rpartition("/")[2]


def _input(place: str, made: Manifest) -> Data:
    """Input of a stage: a folder of ours by its files, a pool of others by the stage's notes on it."""
    name = _name(place)
    for kind in ("curated", "pool"):
        if storage.exists(storage.join(place, manifest.NAME)):
            try:
                found = manifest.read(place, kind)
            except ValueError:  # it is of the other kind
                continue
            return Data(name=name, digest=files_digest(found), uri=place, rows=found.rows, context="input")
    of_pool = made.config if "pool_digest" in made.config else made.config.get("pool", {})
    rows = made.summary.get("rows", {}).get("in", 0)
    return Data(name=name, digest=str(of_pool.get("pool_digest", "unknown")), uri=place, rows=rows, context="input")


def _note(made: Manifest, read: list[str], uri: str) -> str:
    lines = [f"{made.rows:,} rows in {len(made.files):,} files, {made.bytes / 1e6:,.1f} MB", ""]
    if rows := made.summary.get("rows"):
        lines += [f"Kept {rows['kept']:,} of {rows['in']:,} images.", ""]
    lines += [f"- read {place}" for place in read]
    lines += [f"- made by {maker}" for maker in lineage.makers(read, uri)]
    return "\n".join([*lines, ""])
