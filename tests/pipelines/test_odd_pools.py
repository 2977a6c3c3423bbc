"""What the world sends: everything in a pool is read, refused by file and line, or counted."""

import gzip
import io
import json
import tarfile
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from helpers.in_process import without_ray
from helpers.odd_pools import listed, pair, rows_of, seen, tar_of
from helpers.small_pools import picture, read_all
from PIL import Image

from pipelines import schema
from pipelines.curate import Curate
from pipelines.prepare_data import prepare
from pipelines.shard import Shard, shard
from pipelines.stages import read
from pipelines.stages.options import Dedup
from pipelines.stages.read import files, normalise, webdataset

ONE, TWO = tar_of(pair("0", "zero") + pair("1", "one")), tar_of(pair("0", "again") + pair("2", "two"))


@pytest.mark.parametrize(
    ("content", "captions", "unread"),
    [
        (ONE + TWO, ["zero", "one", "again", "two"], {}),
        (ONE + b"\0" * 1536 + TWO + ONE, ["zero", "one", "again", "two", "zero", "one"], {}),
        (gzip.compress(ONE) + gzip.compress(TWO), ["zero", "one", "again", "two"], {}),
        (tar_of(pair("a", "x") + pair("a.v2", "y") + pair("a.v2.w", "z")), ["x", "y", "z"], {}),
        (tar_of([("a.b.c.jpg", b"1"), ("a.b.c.txt", b"dots")]), ["dots"], {}),
        (tar_of([("a.orig.jpg", b"1"), ("a.txt", b"apart")]), ["apart"], {}),
        (tar_of([("a.jpg", b"1"), ("a.seg.png", b"2"), ("a.txt", b"x")]), ["x"], {"members .png": 1}),
        (tar_of([("a.png", b"1"), ("a.jpg", b"2"), ("a.txt", b"x"), ("a.cls", b"0")]), ["x"],
         {"members .png": 1, "members .cls": 1}),
        (tar_of(pair("a", "x") + pair("a", "y")), ["x", "y"], {}),
        (tar_of([*pair("a", "x"), ("a.txt", b"y"), *pair("b", "z")]), ["x", "y", "z"], {}),
        (tar_of([("README", b""), ("._a.jpg", b"x"), *pair("d/a", "\ufeffx\r\n")]), ["x"],
         {"members without a suffix": 1, "members .jpg": 1}),
    ],
)  # fmt: skip
def test_every_member_of_a_tar_is_read_or_counted(
    tmp_path: Path, content: bytes, captions: list[str], unread: dict[str, int]
) -> None:
    (tmp_path / "0.tar").write_bytes(b"")
    (tmp_path / "1.tar").write_bytes(content)
    (tmp_path / "2.tar").write_bytes(tar_of([]))
    rows, counted = rows_of(tmp_path)
    assert [c for r in rows for c in r["captions"]] == captions and counted == unread
    assert all(r["image"] for r in rows) or "y" in captions


def test_fields_of_json_in_tars_are_columns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(webdataset, "SAMPLE_ROWS", 3)
    notes: list[Any] = [
        {"texts": [["alt", "a"], ["title", "b"]], "width": 3, "key": "0", "boxes": [[0.1, 0.2, 0.3, 0.4]], "ok": True},
        {"caption": "c", "width": 3.5, "key": "1", "note": {"a": 1}},
        {"caption": "\ud800 half", "width": 1},
        {"captions": ["d", 5, "\ud800"], "width": "wide"},
        {"captions": ["e"], "key": "\ud800"},
    ]
    members = [
        (f"{i}.{s}", c) for i, n in enumerate(notes) for s, c in (("jpg", b"x"), ("json", json.dumps(n).encode()))
    ]
    bad = [("7.jpg", b"x"), ("7.json", b'{"a": '), ("8.jpg", b"x"), ("8.txt", b"\xff\xfe"), ("9.jpg", b"x")]
    (tmp_path / "a.tar").write_bytes(tar_of(members + bad))
    rows, _ = rows_of(tmp_path)
    unusable = ["line cannot be read", "text is no Unicode", []]
    assert seen(rows) == [["a", "b"], ["c"], "text is no Unicode", "field of another type", ["e"], *unusable]
    assert [r["width"] for r in rows[:3]] == [3.0, 3.5, 1.0] and [r["key"] for r in rows[:2]] == ["0", "1"]
    assert rows[0]["boxes"] == [[0.1, 0.2, 0.3, 0.4]] and rows[0]["ok"] and rows[1]["note"] == '{"a": 1}'
    assert rows[4]["key"] == "?"
    assert seen(rows_of(tmp_path, caption_column="key")[0])[:2] == [["0"], ["1"]]


def test_what_is_too_large_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hole = tarfile.TarInfo("1.jpg")
    hole.size = 2 << 30
    header = bytearray(hole.tobuf())
    header[156:157] = b"S"  # a sparse member of GNU tar: no byte is stored of its 2 GiB
    header[386:410], header[483:495] = b"%011o\0%011o\0" % (2 << 30, 0), b"%011o\0" % (2 << 30)
    header[124:136] = b"%011o\0" % 0
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    content = tar_of(pair("0", "zero"))[:2048] + bytes(header) + tar_of([("1.txt", b"hole"), *pair("2", "two")])
    (tmp_path / "a.tar").write_bytes(content)
    assert seen(rows_of(tmp_path)[0]) == [["zero"], "file is too large", ["two"]]
    monkeypatch.setattr(normalise, "TEXT_BYTES", 3)
    assert seen(rows_of(tmp_path)[0]) == ["file is too large", "file is too large", ["two"]]
    long = tarfile.TarInfo("x")
    long.type, long.size = tarfile.XHDTYPE, 2 << 30
    (tmp_path / "a.tar").write_bytes(long.tobuf() + b"\0" * 1024)
    with pytest.raises(ValueError, match=r"a.tar cannot be read as a tar \(an extended header of 2,147,483,648 bytes"):
        rows_of(tmp_path)
    (tmp_path / "a.tar").unlink()
    (tmp_path / "a.png").write_bytes(b"1234")
    (tmp_path / "a.txt").write_text("four bytes")
    monkeypatch.setattr(normalise, "IMAGE_BYTES", 3)
    assert seen(rows_of(tmp_path)[0]) == ["file is too large"]


def write(file: Path, **columns: Any) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns), file)


def test_parquet_files_are_matched_by_name_and_their_types_made_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write(tmp_path / "0.parquet", image=pa.array([], pa.string()), nothing=pa.array([], pa.int8()))
    write(tmp_path / "a.parquet", id=[1], image=[b"a"], caption=["one"], n=pa.array([1], pa.int32()),
          s=pa.array([None], pa.null()), extra=[1.5])  # fmt: skip
    write(tmp_path / "b.parquet", s=pa.array(["x"], pa.large_string()), n=pa.array([2], pa.int64()),
          caption=pa.array(["two"]).dictionary_encode(), image=pa.array([b"b"], pa.large_binary()),
          id=["2"])  # fmt: skip
    lists = pa.array([["three", "3"]], pa.large_list(pa.large_string()))
    table = pa.table({"s": pa.array(["y"], pa.string_view()), "n": pa.array([None], pa.null()),
                      "captions": lists, "jpg": pa.array([b"c"], pa.binary_view())})  # fmt: skip
    pq.write_table(table.cast(table.schema.set(2, table.schema.field(2).with_nullable(False))), tmp_path / "c.parquet")
    rows, _ = rows_of(tmp_path)
    assert [(r["image"], r["captions"], r["n"], r["s"], r["extra"]) for r in rows] == [
        (b"a", ["one"], 1, None, 1.5), (b"b", ["two"], 2, "x", None), (b"c", ["three", "3"], None, "y", None)
    ]  # fmt: skip
    assert "b.parquet has no column 'extra', as 2 of 3 files: null there" in capsys.readouterr().out


def test_hugging_face_pictures_may_be_paths(tmp_path: Path) -> None:
    listed(tmp_path, "notes.md", "")
    image = [{"bytes": b"own", "path": "x"}, {"bytes": None, "path": "1.jpg"}, {"bytes": None, "path": "no"}, None]
    write(tmp_path / "a.parquet", image=image, text=["a", "b", "c", "d"])
    assert [r["image"] for r in rows_of(tmp_path)[0]] == [b"own", b"1", None, None]
    write(tmp_path / "a.parquet", image=[{"path": str(tmp_path / "2.jpg")}], text=["a"])
    assert [r["image"] for r in rows_of(tmp_path)[0]] == [b"2"]


def test_text_in_parquet_that_is_no_unicode_ends_nothing(tmp_path: Path) -> None:
    bad = pa.array([b"ok", b"\xff", b"caf\xe9"], pa.binary())
    wrong = pa.Array.from_buffers(pa.string(), 3, bad.buffers())
    captions = pa.ListArray.from_arrays(pa.array([0, 2, 3, 3], pa.int32()), wrong)
    write(tmp_path / "a.parquet", image=[b"x"] * 3, captions=captions, note=wrong, id=["a", "b", "c"])
    rows, _ = rows_of(tmp_path)
    assert [r["captions"] for r in rows] == [["ok", None], [None], []]
    assert [r["note"] for r in rows] == ["ok", "\ufffd", "caf\ufffd"]


@pytest.mark.parametrize("name", ["key", "partition", "row", "rank", "matches", "caption_file", "row_reason"])
def test_no_column_of_a_user_collides_with_one_of_a_stage(tmp_path: Path, name: str) -> None:
    write(tmp_path / "a.parquet", image=[b"x"], captions=[["a"]], **{name: ["mine"]})
    assert rows_of(tmp_path)[0][0][name] == "mine"


@pytest.mark.parametrize("name", ["keep_probability", schema.REASON, f"{schema.RESERVED}key"])
def test_names_that_curation_writes_are_refused(tmp_path: Path, name: str) -> None:
    write(tmp_path / "a.parquet", image=[b"x"], captions=[["a"]], **{name: ["mine"]})
    with pytest.raises(ValueError, match=f"has a column '{name}', a name that curation writes itself"):
        rows_of(tmp_path)


def test_two_columns_of_one_name_and_a_second_pool_column_are_refused(tmp_path: Path) -> None:
    table = pa.table([[b"x"], ["a"], ["b"], ["c"]], names=["image", "caption", "n", "n"])
    pq.write_table(table, tmp_path / "a.parquet")
    with pytest.raises(ValueError, match=r"a.parquet has two columns named 'n'"):
        rows_of(tmp_path)
    for name in ("one", "two"):
        write(tmp_path / name / "a.parquet", image=[b"x"], captions=[["a"]], pool=["mine"])
    with pytest.raises(ValueError, match="has a column 'pool', a name that curation writes"):
        read.open_pools([str(tmp_path / "one"), str(tmp_path / "two")], partition_rows=10)


def test_another_letter_anywhere_is_another_pool(tmp_path: Path) -> None:
    rng, found = np.random.default_rng(0), set()
    for name, size in (("l.csv", 1 << 21), ("l.jsonl", 300_000), ("a.tar", 1 << 19)):
        content = bytearray(rng.integers(97, 122, size, np.uint8).tobytes())
        for place in (0, size // 3, size - 1):
            content[place] = ord("_")
            (tmp_path / name).write_bytes(content)
            found.add(files.identity(files.find(str(tmp_path))))
    assert len(found) == 9


def test_the_sums_close_over_a_pool_of_all_that_is_odd(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What comes in is what is kept and, one reason each, what is dropped; what is no row is counted by its kind."""
    without_ray(monkeypatch)
    for name in ("tars", "lists", "folder"):
        (tmp_path / name).mkdir()
    good = [(f"g{i}.{s}", c) for i in range(3) for s, c in (("png", picture(i)), ("txt", b"a cat"))]
    odd = [("x.png", picture(9)), ("x.json", b"{"), ("y.txt", b"a cat"), ("y.cls", b"1"), ("y.v.png", picture(7))]
    (tmp_path / "tars/0.tar").write_bytes(b"")
    (tmp_path / "tars/1.tar").write_bytes(tar_of(good) + tar_of(good + odd))
    (tmp_path / "tars/notes.md").write_text("x")

    for i in range(4):
        (tmp_path / f"lists/{i}.png").write_bytes(picture(20 + i))
    lines = "image,caption\n0.png,a cat\n1.png,a, cat\n\n0.png,the cat\n,a cat\n2.png,caf\xe9\n3.png,\nno.png,a cat\n"
    (tmp_path / "lists/l.csv").write_bytes(lines.encode("latin-1"))
    (tmp_path / "lists/m.jsonl").write_text(
        '{"image": "3.png", "caption": "a", "caption": "b"}\n[]\n{"image": "3.png", "text": ""}\n'
    )

    write(tmp_path / "parquet/0.parquet", image=pa.array([], pa.string()))
    (tmp_path / "parquet/1.parquet").write_bytes(b"")
    texts = pa.array([b"a cat", b"\xff", b"a cat"], pa.binary())
    wrong = pa.Array.from_buffers(pa.string(), 3, texts.buffers())
    image = [{"bytes": picture(40), "path": None}, {"bytes": picture(41), "path": None}, {"bytes": None, "path": "no"}]
    write(tmp_path / "parquet/2.parquet", image=image, caption=wrong, key=[1, 2, None])
    captions = pa.array([["a cat", None, " "], [], None])
    write(tmp_path / "parquet/3.parquet", png=[picture(i) for i in (42, 43, 44)], captions=captions, extra=[b"x"] * 3)

    target = io.BytesIO()
    Image.fromarray(np.zeros((8, 8), np.float32)).save(target, "TIFF")
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    animated = io.BytesIO()
    frames[0].save(animated, "WEBP", save_all=True, append_images=frames[1:])
    contents = {
        "a.png": target.getvalue(), "a.txt": b"a cat", "b.webp": animated.getvalue(), "b.txt": b"\xef\xbb\xbfa cat\n\n",
        "c.jpg": picture(50, "JPEG")[:200], "c.txt": b"a cat", "d.png": picture(51), "d.txt": "a cat".encode("utf-16"),
        "e.png": picture(52), "f.heic": b"x", "g.txt": b"alone", ".hidden": b"x", "h.png": picture(53),
        "h.json": b'{"caption": 3}', "i.png": picture(54), "i.TXT": "a\u2028cat".encode(),
    }  # fmt: skip
    for name, content in contents.items():
        (tmp_path / "folder" / name).write_bytes(content)

    pools = tuple(str(tmp_path / name) for name in ("tars", "lists", "parquet", "folder"))
    result = shard(Shard(pool=pools, output=str(tmp_path / "shards")))
    for name in ("rows", "captions"):
        counts = result.summary[name]
        assert counts["in"] == counts["kept"] + sum(counts["dropped"].values()), name
    rows = {"tars": 6 + 2, "lists": 6 + 3, "parquet": 3 + 3, "folder": 7}
    kept = {"tars": 7, "lists": 1, "parquet": 1 + 1, "folder": 2}
    assert result.summary["rows"]["in"] == sum(rows.values())
    assert Counter(r["pool"] for r in read_all(tmp_path / "shards")) == kept
    assert result.summary["rows"]["dropped"] == {
        "line cannot be read": 5, "text is no Unicode": 2, "no caption kept": 3, "no captions": 4,
        "unreadable image": 3, "pixels of unknown range": 1,
    }  # fmt: skip
    assert result.summary["not_read"] == {
        "blank lines": 2, "files .md": 1, "files .png": 1, "members .cls": 1, "empty files": 1, "files .heic": 1,
        "files .txt": 1, "hidden files": 1,
    }  # fmt: skip


@pytest.mark.parametrize("kind", ["webdataset", "hugging face"])
def test_a_pool_is_sharded_as_it_is(
    tmp_path: Path, kind: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    without_ray(monkeypatch)
    half = picture(40, size=(300, 200))
    pictures = [*map(picture, range(12)), picture(0), b"broken", half[: len(half) // 2]]
    texts = [f"image {i} of many" if i != 3 else "" for i in range(15)]
    if kind == "webdataset":
        members = [(f"{i}.{s}", c) for i, p in enumerate(pictures) for s, c in (("png", p), ("txt", texts[i].encode()))]
        (tmp_path / "pool").mkdir()
        (tmp_path / "pool/0.tar").write_bytes(tar_of(members))
    else:
        image = [{"bytes": data, "path": f"{i}.png"} for i, data in enumerate(pictures)]
        write(tmp_path / "pool/train-00000.parquet", image=image, text=texts, key=["k"] * 15)
    (tmp_path / "links.tsv").write_text("a cat\thttp://x/1.jpg\n")
    with pytest.raises(ValueError, match=r"links.tsv holds links; pipelines/fetch.py"):
        shard(Shard(pool=str(tmp_path / "links.tsv"), output=str(tmp_path / "none")))
    options: dict[str, Any] = {"pool": str(tmp_path / "pool"), "output": str(tmp_path / "shards"), "min_words": 2}
    result = shard(Shard(dedup=Dedup(duplicates=True), **options))
    assert result.summary["rows"]["in"] == 15 and result.summary["rows"]["kept"] == result.rows == 11
    reasons = {"no caption kept": 1, "unreadable image": 1, "duplicate": 1, "undecodable image": 1}
    assert result.summary["rows"]["dropped"] == reasons
    captions = result.summary["captions"]
    rows = read_all(options["output"])
    assert captions["in"] == captions["kept"] + sum(captions["dropped"].values()) and captions["kept"] == len(rows)
    assert {(r["image"], *r["captions"]) for r in rows} <= {(p, t) for p, t in zip(pictures, texts, strict=True)}
    assert {"data_card.json", "data_card.html", "manifest.json"} < {p.name for p in (tmp_path / "shards").iterdir()}
    assert not (tmp_path / "shards/progress").exists()
    capsys.readouterr()
    assert shard(Shard(dedup=Dedup(duplicates=True), **options)) == result
    assert "holds the shards already" in capsys.readouterr().out
    with pytest.raises(ValueError, match="min_words"):
        shard(Shard(dedup=Dedup(duplicates=True), **(options | {"min_words": 3})))


def test_settings_that_would_be_ignored_are_refused() -> None:
    with pytest.raises(ValueError, match="--pool and --curated exclude each other"):
        Shard(pool="a", curated="b")
    with pytest.raises(ValueError, match="--min-words is about --pool"):
        Shard(min_words=3)
    with pytest.raises(ValueError, match="--t is about balancing"):
        Curate(pool="a", curation="none", t=3)
    with pytest.raises(ValueError, match="curation none is about a pool of your own"):
        prepare("out", pool=None, shards=None, evaluation=None, corpus_images=None, curation="none")
