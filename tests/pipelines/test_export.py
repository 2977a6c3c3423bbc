"""Shards as WebDataset tars: the `webdataset` package reads them back, and so does our own reader."""

import hashlib
import json
import tarfile
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import webdataset
from helpers.small_pools import picture, pool_rows, write_parquet

from llip.data import manifest
from llip.data.manifest import FileEntry, Manifest
from pipelines.export import Export, export
from pipelines.stages import read


def shards(folder: Path, rows: list[dict[str, Any]]) -> str:
    """A finished folder of three shards with row groups of four."""
    write_parquet(folder, rows, files=3, row_group_size=4)
    entries = [
        FileEntry(
            name=p.name,
            rows=pq.read_metadata(p).num_rows,
            bytes=p.stat().st_size,
            sha256=hashlib.sha256(p.read_bytes()).hexdigest(),
        )
        for p in sorted(folder.glob("*.parquet"))
    ]
    manifest.write(str(folder), Manifest(kind="shards", files=tuple(entries), config={}, row_group_size=4))
    return str(folder)


@pytest.fixture
def rows() -> list[dict[str, Any]]:
    made = pool_rows(30)
    for i, kind in ((3, "JPEG"), (4, "WEBP")):
        made[i]["image"] = picture(i, kind)
    made[5]["captions"][0] = "ein Café, 猫"
    return made


class TestExport:
    @pytest.mark.usefixtures("ray_session")
    def test_the_webdataset_package_reads_every_row_back(self, tmp_path: Path, rows: list[dict[str, Any]]) -> None:
        result = export(Export(shards=shards(tmp_path / "shards", rows), output=str(tmp_path / "tars")))
        files = sorted((tmp_path / "tars").glob("*.tar"))
        assert [f.name for f in files] == ["000000.tar", "000001.tar", "000002.tar"] == [f.name for f in result.files]
        assert [f.rows for f in result.files] == [10, 10, 10]
        found = list(webdataset.WebDataset([str(f) for f in files], shardshuffle=False))
        assert len({sample["__key__"] for sample in found}) == len(found) == 30
        for row, sample in zip(rows, found, strict=True):
            suffix = {3: "jpg", 4: "webp"}.get(rows.index(row), "png")
            assert sample[suffix] == row["image"] and sample["txt"].decode() == row["captions"][0]
            assert json.loads(sample["json"]) == {name: value for name, value in row.items() if name != "image"}

    @pytest.mark.usefixtures("in_process")
    def test_our_reader_finds_the_same_pictures_and_all_captions(
        self, tmp_path: Path, rows: list[dict[str, Any]]
    ) -> None:
        export(Export(shards=shards(tmp_path / "shards", rows), output=str(tmp_path / "tars")))
        pool = read.open_pool(str(tmp_path / "tars"), partition_rows=100)
        tables = [t for partition in pool.partitions for t in read.tables(pool.format, partition, pool.columns.names)]
        found = pa.concat_tables(tables).to_pylist()
        assert [(r["image"], r["captions"]) for r in found] == [(r["image"], r["captions"]) for r in rows]

    @pytest.mark.usefixtures("in_process")
    def test_the_bytes_are_those_of_the_rows_alone(self, tmp_path: Path, rows: list[dict[str, Any]]) -> None:
        results = [
            export(Export(shards=shards(tmp_path / f"shards-{i}", rows), output=str(tmp_path / f"tars-{i}")))
            for i in range(2)
        ]
        assert results[0].files == results[1].files
        for entry in results[0].files:
            content = (tmp_path / "tars-0" / entry.name).read_bytes()
            assert (entry.bytes, entry.sha256) == (len(content), hashlib.sha256(content).hexdigest())
            with tarfile.open(tmp_path / "tars-0" / entry.name) as tar:
                assert {(m.mtime, m.uid, m.uname, m.mode) for m in tar} == {(0, 0, "", 0o644)}
        names = {p.name for p in (tmp_path / "tars-0").iterdir()}
        assert names == {"000000.tar", "000001.tar", "000002.tar", "manifest.json"}

    @pytest.mark.usefixtures("in_process")
    def test_a_second_run_does_nothing_and_other_shards_are_refused(
        self, tmp_path: Path, rows: list[dict[str, Any]], capsys: pytest.CaptureFixture[str]
    ) -> None:
        settings = Export(shards=shards(tmp_path / "shards", rows), output=str(tmp_path / "tars"))
        first = export(settings)
        assert export(settings) == first and "holds the tars already" in capsys.readouterr().out
        shards(tmp_path / "shards", rows[:20])
        with pytest.raises(ValueError, match=r"other settings.*shards_digest"):
            export(settings)

    @pytest.mark.usefixtures("in_process")
    def test_a_damaged_shard_is_named_and_what_is_written_stays(
        self, tmp_path: Path, rows: list[dict[str, Any]]
    ) -> None:
        settings = Export(shards=shards(tmp_path / "shards", rows), output=str(tmp_path / "tars"))
        file = tmp_path / "shards" / "part-1.parquet"
        content = file.read_bytes()
        for place in (content.index(b"\x89PNG") + 40, content.index(b"a cat") + 1, len(content) - 9):
            file.write_bytes(content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :])
            with pytest.raises(ValueError, match=r"part-1\.parquet is damaged: its SHA-256"):
                export(settings)
            assert not (tmp_path / "tars" / "manifest.json").exists()
            assert not (tmp_path / "tars" / "000001.tar").exists()
        file.write_bytes(content)
        assert export(settings).rows == len(rows)


def test_shards_that_are_missing_or_cut_off_are_refused(tmp_path: Path, rows: list[dict[str, Any]]) -> None:
    settings = Export(shards=shards(tmp_path / "shards", rows), output=str(tmp_path / "tars"))
    file = tmp_path / "shards" / "part-2.parquet"
    content = file.read_bytes()
    for broken in (content[:-1], content + b"x", b""):
        file.write_bytes(broken)
        with pytest.raises(ValueError, match=rf"part-2\.parquet has {len(broken)} bytes where the manifest says"):
            export(settings)
    file.unlink()
    with pytest.raises(ValueError, match=r"part-2\.parquet is missing"):
        export(settings)


def test_unfinished_shards_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="is not a finished shards folder"):
        export(Export(shards=str(tmp_path), output=str(tmp_path / "tars")))
