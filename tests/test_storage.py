"""Files on any URI: what is written comes back, and a failed write leaves what was there."""

from pathlib import Path

import pytest

from llip import storage


def test_json_round_trip_creates_folders(tmp_path: Path) -> None:
    uri = storage.join(str(tmp_path), "deep", "er", "value.json")
    storage.write_json(uri, {"grün": [1, 2.5, None]})
    assert storage.read_json(uri) == {"grün": [1, 2.5, None]}


def test_failed_write_keeps_the_old_file_and_leaves_no_litter(tmp_path: Path) -> None:
    uri = str(tmp_path / "file.bin")
    storage.write_bytes(uri, b"old")
    with pytest.raises(RuntimeError), storage.atomic_writer(uri) as file:
        file.write(b"half of the new")
        raise RuntimeError("the disk is full")
    assert storage.read_bytes(uri) == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["file.bin"]


def test_listing_is_sorted_deep_and_filtered(tmp_path: Path) -> None:
    for name in ("b.parquet", "a/c.parquet", "a/readme.txt"):
        storage.write_bytes(str(tmp_path / name), b"x")
    expected = [str(tmp_path / "a/c.parquet"), str(tmp_path / "b.parquet")]
    assert storage.listing(str(tmp_path), ".parquet") == expected
    assert storage.listing(str(tmp_path / "nothing here")) == []


def test_remove_takes_files_folders_and_nothing(tmp_path: Path) -> None:
    storage.write_bytes(str(tmp_path / "a/b"), b"x")
    storage.remove(str(tmp_path / "a"))
    storage.remove(str(tmp_path / "a"))
    assert not storage.exists(str(tmp_path / "a"))


def test_absolute_keeps_remote_uris() -> None:
    assert storage.absolute("s3://bucket/key") == "s3://bucket/key"
    assert storage.absolute("file:///data/x") == "/data/x"
    assert storage.absolute("x") == str(Path.cwd() / "x")
