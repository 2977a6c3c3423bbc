"""Errors of the system, and two commands that want one output."""

import errno
import os
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from helpers.in_process import without_ray

from llip import storage
from llip.data import manifest
from pipelines import command
from pipelines.curate import Curate, curate
from pipelines.stages.work import lock, only_writer


@pytest.mark.parametrize("place", ["disk", "s3"])
def test_a_folder_has_one_writer_at_a_time(
    place: str, tmp_path: Path, s3_bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = str(tmp_path) if place == "disk" else s3_bucket
    name = storage.join(folder, lock.NAME)
    with only_writer(folder):
        with (
            pytest.raises(ValueError, match=rf"{folder} is being written by process {os.getpid()} on .*choose another"),
            only_writer(folder),
        ):
            raise AssertionError("two writers")
        held = storage.read_json(name)
    assert not storage.exists(name)
    dead = subprocess.Popen(["true"])
    dead.wait()
    for stale in ({"pid": dead.pid}, {"host": "elsewhere", "seen": held["seen"] - 1000}, {"pid": 1, "seen": 0}):
        storage.write_json(name, held | stale)
        with only_writer(folder):
            assert storage.read_json(name)["pid"] == os.getpid()
        assert not storage.exists(name)
    for content in (b"{", b"[]", b""):
        storage.write_bytes(name, content)
        with only_writer(folder):
            pass
    storage.write_json(name, held | {"host": "elsewhere"})
    with pytest.raises(ValueError, match="on elsewhere"), only_writer(folder):
        raise AssertionError("two writers")
    monkeypatch.setattr(lock, "BEAT_SECONDS", 0.01)
    storage.remove(name)
    with only_writer(folder):
        first = storage.read_json(name)["seen"]
        deadline = time.monotonic() + 20
        while storage.read_json(name)["seen"] == first:
            assert time.monotonic() < deadline
            time.sleep(0.02)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"{", "manifest.json cannot be read as JSON"),
        (b"\xff\xfe", "manifest.json cannot be read as JSON"),
        (b"[]", "manifest.json holds a list; a manifest is an object"),
        (b'{"kind": "shards", "schema_version": 1}', "manifest.json is no manifest that this program wrote"),
        (b'{"kind": "shards", "schema_version": 1, "files": [{"name": 1}]}', "manifest.json is no manifest"),
    ],
)
def test_a_broken_manifest_is_named(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / manifest.NAME).write_bytes(content)
    with pytest.raises(ValueError, match=message):
        manifest.read(str(tmp_path), "shards")


@dataclass(frozen=True, kw_only=True)
class Nothing:
    """No settings."""


@pytest.mark.parametrize(
    "error",
    [
        storage.PlaceError(errno.ENOSPC, "/out/x cannot be written (No space left on device)"),
        FileNotFoundError(errno.ENOENT, "No such file or directory", "/out/x"),
        PermissionError(errno.EACCES, "Permission denied", "/out/x"),
        ValueError("/out/x is odd"),
    ],
)
def test_errors_of_the_system_are_one_line_with_the_place(
    error: Exception, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(_: Any) -> None:
        raise error

    monkeypatch.setattr(sys, "argv", ["x"])
    with pytest.raises(SystemExit, match="2"):
        command.run(Nothing, fail, "")
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ") and "/out/x" in line


def test_the_output_is_blamed_for_what_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    without_ray(monkeypatch)
    (tmp_path / "pool").mkdir()
    (tmp_path / "pool/a.txt").write_text("a cat\n")
    (tmp_path / "pool/a.png").write_bytes(b"x")
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match=r"/file/out/\.lock\.json cannot be written \((File exists|Not a directory)\)"):
        curate(Curate(pool=str(tmp_path / "pool"), output=str(tmp_path / "file/out")))
