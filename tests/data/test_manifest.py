"""A manifest means that a folder is complete, and of which settings."""

from pathlib import Path

import pytest

from llip import storage
from llip.data import manifest
from llip.data.manifest import FileEntry, Manifest


def example(**config: object) -> Manifest:
    files = (
        FileEntry(name="a.parquet", rows=3, bytes=10, sha256="00"),
        FileEntry(name="b.parquet", rows=4, bytes=11, sha256="11"),
    )
    return Manifest(kind="shards", files=files, config=dict(config), row_group_size=3, summary={"kept": 7})


def test_round_trip(tmp_path: Path) -> None:
    manifest.write(str(tmp_path), example(seed=1))
    assert manifest.read(str(tmp_path), "shards") == example(seed=1)
    assert (example().rows, example().bytes) == (7, 21)


def test_done_only_with_the_same_settings(tmp_path: Path) -> None:
    folder = str(tmp_path)
    assert not manifest.is_done(folder, "shards", {"seed": 1})
    manifest.write(folder, example(seed=1))
    assert manifest.is_done(folder, "shards", {"seed": 1})
    with pytest.raises(ValueError, match=r"other settings .*seed: 1 → 2"):
        manifest.is_done(folder, "shards", {"seed": 2})


def test_what_is_no_such_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="not a finished shards folder"):
        manifest.read(str(tmp_path), "shards")
    manifest.write(str(tmp_path), example())
    with pytest.raises(ValueError, match="describes a 'shards' folder; a 'pool' folder is needed"):
        manifest.read(str(tmp_path), "pool")
    uri = storage.join(str(tmp_path), manifest.NAME)
    storage.write_json(uri, storage.read_json(uri) | {"schema_version": 99})
    with pytest.raises(ValueError, match="schema version 99"):
        manifest.read(str(tmp_path), "shards")
