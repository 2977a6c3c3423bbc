"""Every format of pool becomes the same rows, and every unusable pool is refused before any work."""

import csv
import io
import json
import tarfile
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from helpers.small_pools import picture, pool_rows, write_parquet

from llip import storage
from pipelines.stages import read
from pipelines.stages.read import parquet


def rows_of(uri: str, *, partition_rows: int = 10, images: bool = True) -> list[dict[str, Any]]:
    pool = read.open_pool(uri, partition_rows=partition_rows)
    columns = [name for name in pool.columns.names if images or name != "image"]
    tables = [t for partition in pool.partitions for t in read.tables(pool.format, partition, columns)]
    return pa.concat_tables(tables).to_pylist()


def write_table(folder: Path, **columns: Any) -> str:
    folder.mkdir(exist_ok=True)
    pq.write_table(pa.table(columns), folder / "part.parquet")
    return str(folder)


def write_tar(file: Path, members: dict[str, bytes]) -> str:
    with tarfile.open(file, "w") as tar:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return str(file)


def test_parquet_keeps_ids_images_captions_and_other_columns(tmp_path: Path) -> None:
    rows = pool_rows(60)
    assert rows_of(write_parquet(tmp_path / "pool", rows)) == rows


def test_partitions_are_whole_row_groups(tmp_path: Path) -> None:
    uri = write_parquet(tmp_path / "pool", pool_rows(100), files=2, row_group_size=10)
    partitions = read.open_pool(uri, partition_rows=25).partitions
    assert [(p.name, p.start, p.stop, p.first_row, p.size) for p in partitions] == [
        ("part-0.parquet", 0, 3, 0, 30),
        ("part-0.parquet", 3, 5, 30, 20),
        ("part-1.parquet", 0, 3, 0, 30),
        ("part-1.parquet", 3, 5, 30, 20),
    ]


def test_partitions_of_large_rows_have_fewer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    uri = write_parquet(tmp_path / "pool", pool_rows(100), files=1, row_group_size=10)
    group = pq.read_metadata(tmp_path / "pool/part-0.parquet").row_group(0).total_byte_size
    monkeypatch.setattr(parquet, "PARTITION_BYTES", 2.5 * group)
    partitions = read.open_pool(uri, partition_rows=10**6).partitions
    assert [(p.start, p.stop, p.first_row) for p in partitions] == [(0, 3, 0), (3, 6, 30), (6, 9, 60), (9, 10, 90)]


def test_derived_ids_do_not_depend_on_partitions_or_row_groups(tmp_path: Path) -> None:
    images, captions = [picture(i) for i in range(50)], [[f"image {i}"] for i in range(50)]
    uri = write_table(tmp_path / "pool", image=images, captions=captions)
    ids = [r["id"] for r in rows_of(uri)]
    assert len(set(ids)) == 50
    pq.write_table(pa.table({"image": images, "captions": captions}), tmp_path / "pool/part.parquet", row_group_size=7)
    assert [r["id"] for r in rows_of(uri, partition_rows=1)] == ids


@pytest.mark.parametrize("name", ["caption", "text"])
def test_one_caption_a_row_becomes_a_list(tmp_path: Path, name: str) -> None:
    uri = write_table(tmp_path / "pool", image=[b"a", b"b", b"c"], **{name: ["one", None, "three"]})
    assert [r["captions"] for r in rows_of(uri)] == [["one"], [], ["three"]]


def test_large_types_structs_of_bytes_and_integer_ids_are_accepted(tmp_path: Path) -> None:
    captions = pa.array([["a", "b"], None], pa.large_list(pa.large_string()))
    image = pa.array([{"bytes": b"x", "path": "p"}, {"bytes": b"y", "path": "q"}])
    rows = rows_of(write_table(tmp_path / "pool", id=pa.array([7, 8]), image=image, captions=captions))
    assert rows == [{"id": "7", "image": b"x", "captions": ["a", "b"]}, {"id": "8", "image": b"y", "captions": []}]


def test_webdataset(tmp_path: Path) -> None:
    (tmp_path / "pool").mkdir()
    members = {
        "0001.jpg": b"one",
        "0001.txt": b"a cat\n",
        "0002.png": b"two",
        "0002.json": json.dumps({"captions": ["a dog", "a hound"], "width": 3}).encode(),
        "0003.webp": b"three",
        "0003.json": b"{broken",
        "0004.txt": b"no image",
    }
    write_tar(tmp_path / "pool/a.tar", members)
    write_tar(tmp_path / "pool/b.tar", members)
    rows = rows_of(str(tmp_path / "pool"))
    assert [(r["image"], r["captions"]) for r in rows[:4]] == [
        (b"one", ["a cat"]),
        (b"two", ["a dog", "a hound"]),
        (b"three", []),
        (None, ["no image"]),
    ]
    assert len({r["id"] for r in rows}) == 8 and rows[0]["id"].endswith("-0001")


def test_csv_and_jsonl_name_files_beside_them(tmp_path: Path) -> None:
    for i in range(3):
        (tmp_path / f"{i}.png").write_bytes(picture(i))
    with (tmp_path / "list.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["filepath", "caption"], ["0.png", 'a "cat", sleeping'], ["missing.png", "dog"]])
    rows = rows_of(str(tmp_path / "list.csv"), partition_rows=1)
    assert [(r["image"], r["captions"]) for r in rows] == [(picture(0), ['a "cat", sleeping']), (None, ["dog"])]
    lines = [{"image": "1.png", "captions": ["a", "b"]}, {"image": str(tmp_path / "2.png"), "captions": []}]
    (tmp_path / "list.jsonl").write_text("\n".join(map(json.dumps, lines)))
    rows = rows_of(str(tmp_path / "list.jsonl"))
    assert [(r["image"], r["captions"]) for r in rows] == [(picture(1), ["a", "b"]), (picture(2), [])]


def test_a_folder_of_images_beside_texts(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "a.png").write_bytes(picture(1))
    (tmp_path / "a.txt").write_text("a cat\nasleep\n")
    (tmp_path / "sub/b.jpg").write_bytes(b"junk")
    rows = rows_of(str(tmp_path))
    assert [(r["image"], r["captions"]) for r in rows] == [(picture(1), ["a cat", "asleep"]), (b"junk", [])]
    assert rows[1]["id"].endswith("-sub/b.jpg")


def test_a_bucket(tmp_path: Path, s3_bucket: str) -> None:
    rows = pool_rows(10)
    for file in storage.listing(write_parquet(tmp_path / "pool", rows)):
        storage.write_bytes(f"{s3_bucket}/pool/{Path(file).name}", Path(file).read_bytes())
    assert rows_of(f"{s3_bucket}/pool") == rows == rows_of(f"{s3_bucket}/pool/")


IMAGE = [b"x"]


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"captions": [["a"]]}, "has no column 'image'.* and no 'url'.*it has captions"),
        ({"url": [7], "captions": [["a"]]}, "'url' is int64; it has to be strings"),
        ({"image": IMAGE, "title": ["a"]}, "no column of captions: 'captions'.*it has image, title"),
        ({"image": IMAGE, "caption": ["a"], "text": ["b"]}, "caption and text; leave one"),
        (
            {"image": IMAGE, "captions": [[1]]},
            "'captions' is list<.*int64>; it has to be a string or a list of strings",
        ),
        ({"image": ["path"], "captions": [["a"]]}, "'image' is string; it has to be binary"),
        ({"image": IMAGE, "captions": [["a"]], "id": [1.5]}, "'id' is double; it has to be strings or integers"),
        (
            {"image": IMAGE, "captions": [["a"]], "caption_types": ["k"]},
            "'caption_types' is string; it has to be a list of strings",
        ),
    ],
)
def test_unusable_columns_are_refused_by_name(tmp_path: Path, columns: dict[str, Any], message: str) -> None:
    uri = write_table(tmp_path / "pool", **columns)
    with pytest.raises(ValueError, match=f"part.parquet.*{message}"):
        read.open_pool(uri, partition_rows=10)


def test_a_null_id_is_refused_with_its_row(tmp_path: Path) -> None:
    uri = write_table(tmp_path / "pool", image=IMAGE * 3, captions=[["a"]] * 3, id=["a", "b", None])
    with pytest.raises(ValueError, match=r"part.parquet: column 'id' is null in 1 of the rows"):
        read.open_pool(uri, partition_rows=10)
    pq.write_table(pq.read_table(uri), f"{uri}/part.parquet", write_statistics=False)  # then found when it is read
    with pytest.raises(ValueError, match=r"part.parquet: column 'id' is null in row 2"):
        rows_of(uri)


def test_columns_of_types_that_do_not_agree_are_refused(tmp_path: Path) -> None:
    write_table(tmp_path / "pool", image=IMAGE, captions=[["a"]], score=[1.0])
    pq.write_table(pa.table({"image": IMAGE, "captions": [["a"]], "score": ["high"]}), tmp_path / "pool/z.parquet")
    with pytest.raises(ValueError, match=r"z.parquet has the column 'score' as string, .*part.parquet as double"):
        read.open_pool(str(tmp_path / "pool"), partition_rows=10)


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({}, "does not exist or is empty"),
        ({"readme.md": b""}, "none of .parquet, .tar.*it has readme.md"),
        ({"a.parquet": b"junk"}, "a.parquet cannot be read as Parquet"),
        ({"a.parquet": b"junk", "b.tar": b"junk"}, "mixes parquet and webdataset"),
        ({"b.tar": b"junk" * 200}, "b.tar cannot be read as a tar"),
        ({"list.csv": b"name,caption\na,b\n"}, "list.csv has no column of image paths.*it has name, caption"),
        ({"list.csv": b"image,title\na,b\n"}, "list.csv has no column of captions"),
        ({"list.csv": b"image,caption\n,b\n"}, "list.csv: row 1 has no 'image'"),
        ({"list.csv": b"image,caption\n"}, "holds no rows"),
        ({"list.jsonl": b'{"image": '}, "list.jsonl cannot be read"),
        ({"list.jsonl": b"[1]\n"}, "list.jsonl cannot be read: line 1: it holds '\\[1\\]'"),
    ],
)
def test_unusable_files_are_refused_by_name(tmp_path: Path, files: dict[str, bytes], message: str) -> None:
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=message):
        read.open_pool(str(tmp_path), partition_rows=10)


def test_a_pool_without_rows_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="holds no rows"):
        read.open_pool(write_parquet(tmp_path / "pool", [], files=1), partition_rows=10)


def test_a_tar_without_rows_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"a.tar holds no row"):
        read.open_pool(write_tar(tmp_path / "a.tar", {"notes.md": b"x"}), partition_rows=10)


def test_a_missing_bucket_is_refused(s3_bucket: str) -> None:
    with pytest.raises(ValueError, match=r"s3://no-such-bucket/pool (does not exist|cannot be listed)"):
        read.open_pool("s3://no-such-bucket/pool", partition_rows=10)


def test_an_unreachable_bucket_is_refused(s3_bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    import fsspec

    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    monkeypatch.setattr(fsspec.get_filesystem_class("s3"), "retries", 1)
    fsspec.get_filesystem_class("s3").clear_instance_cache()
    with pytest.raises(ValueError, match=r"s3://bucket/pool cannot be listed.*AWS_ENDPOINT_URL"):
        read.open_pool("s3://bucket/pool", partition_rows=10)


@pytest.mark.parametrize("damage", ["header", "end", "data"])
def test_a_tar_with_a_bad_member_is_refused(tmp_path: Path, damage: str) -> None:
    file = Path(write_tar(tmp_path / "a.tar", {f"{i}.{s}": b"a cat" for i in range(4) for s in ("jpg", "txt")}))
    content = bytearray(file.read_bytes())
    if damage == "header":
        content[4 * 1024 + 148 : 4 * 1024 + 156] = b"99999999"  # the checksum of the fifth header
    content = content[: {"header": len(content), "end": 5 * 1024 + 100, "data": 5 * 1024 + 514}[damage]]
    file.write_bytes(content)
    with pytest.raises(ValueError, match=rf"{file} cannot be read as a tar"):
        rows_of(str(file))
