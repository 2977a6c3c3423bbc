"""Several pools in one run, and folders that are moved."""

import shutil
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from helpers.plain_reference import plain_hash
from helpers.small_pools import picture, pool_rows, read_all, write_parquet

from llip import storage
from pipelines.curate import Curate, curate
from pipelines.shard import Shard, shard
from pipelines.stages import read
from pipelines.stages.read import files, repeated


def folder_pool(folder: Path, count: int) -> str:
    folder.mkdir()
    for i in range(count):
        (folder / f"{i:03d}.png").write_bytes(picture(i))
        (folder / f"{i:03d}.txt").write_text(f"a cat, {i}\n")
    return str(folder)


def stays(identity: str, share: Fraction) -> bool:
    """The draw of a row of a pool with a weight."""
    return Fraction(plain_hash(0, identity, -3 % 2**64) >> 11, 2**53) < share


@pytest.mark.usefixtures("in_process", "undrawn")
def test_pools_with_weights_are_curated_as_one_and_folders_may_be_moved(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = pool_rows(120)
    home = tmp_path / "home"
    pools = (write_parquet(home / "drawings", rows), "photos=" + folder_pool(home / "folder", 60))
    (tmp_path / "entries.txt").write_text("a\n")
    settings = Curate(
        pool=pools, weights=(1, 3), output=str(home / "curated"), metadata=str(tmp_path / "entries.txt"), t=10**6
    )
    result = curate(settings)
    kept = {r["id"]: r for r in read_all(home / "curated")}
    expected = {f"drawings/{r['id']}" for r in rows if stays(f"drawings/{r['id']}", Fraction(1, 3))}
    found = {i for i, r in kept.items() if r["pool"] == "drawings"}
    assert found == expected and 20 < len(found) < 60
    photos = {i: r for i, r in kept.items() if r["pool"] == "photos"}
    assert len(photos) == 60 and all(i.startswith("photos/") for i in photos)
    assert {r["image"] for r in photos.values()} == {picture(i) for i in range(60)}
    assert set(kept[next(iter(kept))]) == {"id", "image", "captions", "pool"}
    card = storage.read_json(f"{settings.output}/data_card.json")
    assert card["rows"]["dropped"] == {"thinned out by its pool's weight": 120 - len(found)}

    made = Shard(curated=settings.output, output=str(home / "shards"))
    shards = shard(made)
    assert {r["pool"] for r in read_all(home / "shards")} == {"drawings", "photos"}
    shutil.copytree(home, tmp_path / "moved")
    shutil.rmtree(home)
    elsewhere = tuple(p.replace("/home/", "/moved/") for p in pools)
    again = replace(settings, pool=elsewhere, output=str(tmp_path / "moved/curated"))
    capsys.readouterr()
    assert curate(again) == result
    assert shard(Shard(curated=again.output, output=str(tmp_path / "moved/shards"))) == shards
    assert "curated already" in (printed := capsys.readouterr().out) and "holds the shards already" in printed


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"pool": ("a", "b"), "weights": (1.0,)}, "--weights has 1 numbers for 2 pools"),
        ({"pool": "a", "weights": (0.0,)}, "each has to be above 0"),
    ],
)
def test_weights_that_do_not_fit_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Curate(**changes)


def test_pools_of_one_name_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="'pool' names several pools; write name=URI"):
        read.open_pools([str(tmp_path / "a/pool"), f"pool={tmp_path}"], partition_rows=10)


def test_other_content_of_the_same_size_is_another_pool(tmp_path: Path) -> None:
    def written(value: int) -> str:
        table = pa.table({"image": [b"x", b"y"], "caption": [f"value {value}", "b"]})
        pq.write_table(table, tmp_path / "a.parquet")
        return files.identity(files.find(str(tmp_path)))

    first, size = written(1), (tmp_path / "a.parquet").stat().st_size
    assert written(2) != first and (tmp_path / "a.parquet").stat().st_size == size
    assert written(1) == first


@pytest.mark.usefixtures("in_process", "undrawn")
def test_a_damaged_curated_file_is_named(tmp_path: Path) -> None:
    settings = Curate(pool=write_parquet(tmp_path / "pool", pool_rows(60)), output=str(tmp_path / "curated"))
    file = Path(settings.output, curate(settings).files[0].name)
    content = bytearray(file.read_bytes())
    at = content.index(b"IHDR")
    content[at + 9] ^= 1
    file.write_bytes(content)
    with pytest.raises(ValueError, match=rf"{file} cannot be read as Parquet \(.*CRC checksum"):
        shard(Shard(curated=settings.output, output=str(tmp_path / "shards")))


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ([["a", "b"], ["c"]], None),
        (
            [["a", "b"], ["c", "a"]],
            r"0\.parquet and .*1\.parquet: the id 'a' names several rows; ids have to be unique",
        ),
        ([[1, 2, 2]], r"0\.parquet: the id '2' names several rows"),
        ([["1", "2"], [2, 3]], r"the id '2' names several rows"),
        ([None, None, ["a"]], None),
    ],
)
def test_repeated_ids_are_refused_before_any_work(tmp_path: Path, files: list[Any], message: str | None) -> None:
    """Where two pools have them, ids begin with their names."""
    for pool in ("one", "two"):
        for i, ids in enumerate(files):
            rows = len(ids or "xy")
            columns = {"image": pa.array([b"x"] * rows, pa.binary()), "caption": ["a"] * rows}
            (tmp_path / pool).mkdir(exist_ok=True)
            pq.write_table(pa.table(columns | ({"id": ids} if ids else {})), tmp_path / pool / f"{i}.parquet")
    places = (str(tmp_path / "one"), str(tmp_path / "two"))
    if message:
        with pytest.raises(ValueError, match=message):
            curate(Curate(pool=places, output=str(tmp_path / "curated"), curation="none"))
        assert not (tmp_path / "curated").exists()
    else:
        read.refuse_repeated_ids(read.open_pools(places, partition_rows=10))


def test_of_large_pools_the_first_ids_of_files_are_compared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(repeated, "IDS", 4)
    for i, ids in enumerate((["a", "b", "x"], ["c", "d", "x"])):
        columns = {"id": ids, "image": pa.array([b"x"] * 3, pa.binary()), "caption": ["a"] * 3}
        pq.write_table(pa.table(columns), tmp_path / f"{i}.parquet")
    pool = read.open_pool(str(tmp_path), partition_rows=10)
    read.refuse_repeated_ids(pool)
    monkeypatch.setattr(repeated, "IDS", 6)
    with pytest.raises(ValueError, match="the id 'x' names several rows"):
        read.refuse_repeated_ids(pool)
