"""Files on any URI: what is written comes back, and a failed write leaves what was there."""

import errno
from pathlib import Path

import pytest
from botocore.exceptions import EndpointConnectionError, NoCredentialsError

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


def test_an_object_of_a_folder_s_name_goes_with_the_folder(s3_bucket: str) -> None:
    for name in ("d", "d/e", "d/f/g", "d1", "d.txt"):
        storage.write_bytes(f"{s3_bucket}/{name}", b"x")
    storage.remove(f"{s3_bucket}/d")
    assert storage.listing(s3_bucket) == [f"{s3_bucket}/d.txt", f"{s3_bucket}/d1"]


def test_absolute_keeps_remote_uris() -> None:
    assert storage.absolute("s3://bucket/key") == "s3://bucket/key"
    assert storage.absolute("file:///data/x") == "/data/x"
    assert storage.absolute("x") == str(Path.cwd() / "x")


NAMES = ("run?", "exp[1]", "a*b", "[!a]", "x::y", "#1", "50%25", "a b", "~user", "{a,b}", "run?a=b&c", "zip:x", "ü")
"""Names that one or the other library would take for a pattern, a chain, a fragment or a home."""


@pytest.mark.parametrize("place", ["disk", "s3", "memory"])
def test_a_uri_is_a_name_and_never_a_pattern(
    place: str, tmp_path: Path, s3_bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    root = {"disk": str(tmp_path), "s3": s3_bucket, "memory": f"memory://{tmp_path.name}"}[place]
    others = [storage.join(root, name, "part") for name in ("run1", "runA", "exp1", "a", "b", "axb", "x", "xy", "!")]
    for uri in others:
        storage.write_bytes(uri, b"another's")
    for name in NAMES[: 7 if place == "s3" else None]:  # each takes half a second there
        folder = storage.join(root, name)
        assert not storage.exists(folder) and not storage.listing(folder) and not storage.sizes(folder), name
        storage.remove(folder)
        for inner in ("progress/1.json", name):
            storage.write_json(storage.join(folder, inner), inner)
        assert storage.exists(folder) and storage.is_folder(folder), name
        assert set(storage.sizes(folder)) == {"progress/1.json", name}, name
        assert all(storage.exists(uri) and storage.read_json(uri) for uri in storage.listing(folder)), name
        storage.remove(storage.join(folder, "progress"))
        storage.remove(Path(folder, "progress") if place == "disk" else storage.join(folder, "progress"))
        assert list(storage.sizes(folder)) == [name], name
        storage.remove(folder)
        assert not storage.exists(folder), name
    assert [storage.read_bytes(uri) for uri in others] == [b"another's"] * len(others)
    assert len(storage.listing(root)) == len(others)


def test_relative_names_and_links_are_taken_as_they_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("~", "~/x", "zip::y", "a://b"):
        if storage.is_local(name):
            storage.write_bytes(name + "/file", b"x")
            assert Path(tmp_path, name, "file").exists(), name
            assert storage.exists(Path(name)) and storage.listing(name) == [str(tmp_path / name / "file")]
    Path("link").symlink_to("~", target_is_directory=True)
    storage.remove("link")
    assert not Path("link").exists() and Path("~", "file").exists()


def test_what_cannot_be_opened_or_written_is_named(tmp_path: Path, s3_bucket: str) -> None:
    with pytest.raises(ValueError, match=r"abc://x/y cannot be opened .*s3:// URI"):
        storage.exists("abc://x/y")
    with pytest.raises(ValueError, match="means a version"):
        storage.remove(f"{s3_bucket}/a?versionId=1")
    (tmp_path / "file").write_text("{")
    with pytest.raises(ValueError, match=r"file/x cannot be written \((File exists|Not a directory)\)"):
        storage.write_bytes(tmp_path / "file/x", b"")
    with pytest.raises(ValueError, match=r"^/dev/full/x cannot be written"):
        storage.write_bytes("/dev/full/x", b"")
    with pytest.raises(ValueError, match=r"no-such-bucket-here/x cannot be written"):
        storage.write_bytes("s3://no-such-bucket-here/x", b"x")
    with pytest.raises(ValueError, match=r"file cannot be read as JSON"):
        storage.read_json(tmp_path / "file")


@pytest.mark.parametrize("name", NAMES)
def test_ray_and_arrow_read_the_same_name(name: str) -> None:
    from pyarrow.fs import FileSystem

    assert FileSystem.from_uri(storage.quoted(f"s3://bucket/{name}/x") + "?region=a")[1] == f"bucket/{name}/x"
    assert FileSystem.from_uri(storage.quoted(f"/folder/{name}/x"))[1] == f"/folder/{name}/x"


@pytest.mark.parametrize(
    ("error", "tries"),
    [
        (OSError(errno.EIO, "the service is away"), 3),
        (ConnectionResetError("closed"), 3),
        (EndpointConnectionError(endpoint_url="http://s3"), 3),
        (storage.PlaceError(errno.EIO, "cannot be written"), 3),
        (OSError(errno.ENOSPC, "No space left on device"), 1),
        (FileNotFoundError("gone"), 1),
        (OSError("no Parquet file"), 1),
        (NoCredentialsError(), 1),
        (ValueError("mine"), 1),
    ],
    ids=lambda value: str(value)[:24],
)
def test_what_may_pass_is_tried_again(error: Exception, tries: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(storage, "DELAYS", (0.0, 0.0))
    made: list[int] = []

    def action(failures: int) -> str:
        made.append(1)
        if len(made) <= failures:
            raise error
        return "done"

    with pytest.raises(type(error)):
        storage.patient(lambda: action(3), "it")
    assert len(made) == tries
    made.clear()
    if tries > 1:
        assert storage.patient(lambda: action(2), "it") == "done"
