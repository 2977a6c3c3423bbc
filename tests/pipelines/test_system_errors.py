"""Errors of the system, and two commands that want one output."""

import errno
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from helpers.in_process import without_ray

from llip import lease, storage
from llip.data import manifest
from llip.data.manifest import Manifest
from llip.lease import sole_writer
from pipelines import command
from pipelines.corpus import Corpus, write_corpus
from pipelines.curate import Curate, curate
from pipelines.export import Export, export
from pipelines.fetch import Fetch, fetch
from pipelines.metadata import Metadata, build
from pipelines.shard import Shard, shard

JOBS: dict[str, Callable[[str, str], object]] = {
    "curate": lambda pool, out: curate(Curate(pool=f"{pool}/rows", output=out)),
    "shard": lambda pool, out: shard(Shard(pool=f"{pool}/rows", output=out)),
    "export": lambda pool, out: export(Export(shards=f"{pool}/shards", output=out)),
    "metadata": lambda pool, out: build(Metadata(corpus=f"{pool}/texts", output=out)),
    "fetch": lambda pool, out: fetch(Fetch(links=f"{pool}/links.csv", output=out)),
    "corpus": lambda pool, out: write_corpus(Corpus(output=out)),
}


@pytest.mark.parametrize("job", JOBS)
def test_of_two_commands_on_one_output_the_second_is_refused(
    job: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    without_ray(monkeypatch)
    pool, output = str(tmp_path / "pool"), str(tmp_path / "out")
    storage.write_bytes(f"{pool}/rows/a.txt", b"a cat\n")
    storage.write_bytes(f"{pool}/rows/a.png", b"x")
    storage.write_bytes(f"{pool}/texts/a.txt", b"a cat\n")
    storage.write_bytes(f"{pool}/links.csv", b"url,text\nhttp://a/1,a\n")
    manifest.write(f"{pool}/shards", Manifest(kind="shards", files=(), config={}))
    with sole_writer(output):
        with pytest.raises(ValueError, match=rf"{output} is being written by process {os.getpid()} on"):
            JOBS[job](pool, output)
        assert [p.name for p in Path(output).iterdir()] == [lease.NAME]


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
    with pytest.raises(ValueError, match=r"/file/out cannot be written \((File exists|Not a directory)\)"):
        curate(Curate(pool=str(tmp_path / "pool"), output=str(tmp_path / "file/out")))
