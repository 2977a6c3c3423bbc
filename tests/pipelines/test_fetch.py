"""Lists of links of every format, and pools that are fetched from them."""

import csv
import gzip
import hashlib
import io
import json
from collections import Counter
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from helpers.in_process import without_ray
from helpers.misbehaving_server import Site, serving
from helpers.small_pools import picture, read_all

from pipelines.curate import Curate, curate
from pipelines.fetch import Fetch, fetch
from pipelines.stages.fetch import links
from pipelines.stages.fetch.download import Limits
from pipelines.stages.fetch.links import Columns
from pipelines.stages.work import Partition, run

PICTURE = picture(1)


@pytest.fixture
def site() -> Iterator[Site]:
    pages: dict[str, Any] = {
        "/good": lambda h: h.answer(200, PICTURE),
        "/gone": lambda h: h.answer(410),
        "/noai": lambda h: h.answer(200, PICTURE, X_Robots_Tag="noai"),
    }
    with serving(pages) as site:
        yield site


def links_of(
    file: Path, kind: str, columns: Columns | None = None, unread: Counter[str] | None = None
) -> list[dict[str, Any]]:
    partition = Partition(index=0, file=str(file), name=file.name, size=1)
    columns = columns or Columns(url=None, captions=None, sha256=None)
    kind = links.LIST if kind in ("csv", "jsonl") else kind
    result = links.list_partition(partition, folder=str(file.parent), kind=kind, columns=columns, row_group_size=2)
    (Counter() if unread is None else unread).update(result["unread"])
    return pq.read_table(file.parent / links.links_name(partition)).to_pylist()


def test_links_of_a_parquet_file(tmp_path: Path) -> None:
    rows = {
        "URL": ["http://a/1", "/2", None],
        "TEXT": ["one", None, "three"],
        "page": ["http://b/x", "http://b/x/y", None],
        "score": [0.1, 0.2, 0.3],
    }
    pq.write_table(pa.table(rows), tmp_path / "a.parquet")
    links = links_of(tmp_path / "a.parquet", "parquet")
    assert [r["url"] for r in links] == ["http://a/1", "http://b/2", None]
    assert [r["captions"] for r in links] == [["one"], [], ["three"]] and [r["score"] for r in links] == [0.1, 0.2, 0.3]
    assert len({r["id"] for r in links}) == 3
    assert pq.read_metadata(tmp_path / "links-000000.parquet").num_row_groups == 2


@pytest.mark.parametrize("kind", ["parquet", "csv", "jsonl"])
def test_the_columns_that_are_asked_for_are_read(tmp_path: Path, kind: str) -> None:
    rows = [{"url": "http://no/1", "captions": "no", "image_url": "http://a/1", "recaption": "a cat", "score": "0.5"}]
    file = tmp_path / f"a.{kind}"
    if kind == "parquet":
        pq.write_table(pa.Table.from_pylist(rows), file)
    elif kind == "csv":
        file.write_text("\n".join(",".join(line) for line in (rows[0].keys(), rows[0].values())))
    else:
        file.write_text(json.dumps(rows[0]))
    (link,) = links_of(file, kind, Columns(url="image_url", captions="recaption", sha256=None))
    assert (link["url"], link["captions"]) == ("http://a/1", ["a cat"])
    assert link.keys() == {"id", "captions", "url", "score"}
    assert kind == "parquet" or link["score"] == 0.5
    (link,) = links_of(file, kind, Columns(url=None, captions="recaption", sha256=None))
    assert (link["url"], link["captions"]) == ("http://no/1", ["a cat"])


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ([["a", "b"], ["c", None]], r"1\.parquet: row 1 has no id"),
        ([[None], ["c"]], r"0\.parquet: row 0 has no id"),
        ([["a", "b"], ["c", "a"]], r"0\.parquet and 1\.parquet: the id 'a' names several links"),
        ([["a", "b", "b"]], r"0\.parquet: the id 'b' names several links"),
        ([["", "b"], ["c"], [""]], r"0\.parquet and 2\.parquet: the id '' names several links"),
        ([["a", "b"], ["c", "d"], ["A", " a"]], None),
    ],
)
@pytest.mark.parametrize("hashes", [1, 1 << 25])
def test_ids_are_checked(
    tmp_path: Path, files: list[list[str | None]], message: str | None, hashes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(links, "HASHES", hashes)
    columns = Columns(url=None, captions=None, sha256=None)
    listed = []
    with pytest.raises(ValueError, match=message) if message else nullcontext():
        for i, ids in enumerate(files):
            name = f"{i}.parquet"
            rows = {"id": pa.array(ids, pa.string()), "url": ["http://a"] * len(ids), "text": ["x"] * len(ids)}
            pq.write_table(pa.table(rows), tmp_path / name)
            partition = Partition(index=i, file=str(tmp_path / name), name=name, size=1)
            links.list_partition(partition, folder=str(tmp_path), kind="parquet", columns=columns, row_group_size=2)
            listed.append((str(tmp_path / links.links_name(partition)), name))
        links.refuse_repeated_ids(listed, sum(map(len, files)))


@pytest.mark.usefixtures("in_process")
def test_nothing_is_fetched_of_a_list_that_repeats_an_id(site: Site, tmp_path: Path) -> None:
    rows = {"id": ["a", "b", "a"], "url": [f"{site.address}/good?{i}" for i in range(3)], "text": ["x"] * 3}
    pq.write_table(pa.table(rows), tmp_path / "links.parquet")
    settings = Fetch(links=str(tmp_path / "links.parquet"), output=str(tmp_path / "pool"), allow=("127.0.0.1/32",))
    with pytest.raises(ValueError, match=r"links\.parquet: the id 'a' names several links"):
        fetch(settings)
    assert not site.requests


def test_links_of_csv_and_jsonl(tmp_path: Path) -> None:
    with (tmp_path / "a.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["src", "alt", "page", "md"], ["../i.png", 'a "cat"', "http://b/x/y/z", "ab"]])
    assert links_of(tmp_path / "a.csv", "csv")[0] | {"id": ""} == {
        "id": "",
        "captions": ['a "cat"'],
        "url": "http://b/x/i.png",
        "page": "http://b/x/y/z",
        "md": "ab",
    }
    lines = [{"link": "http://a/1", "captions": ["a", "b"], "md": "ab"}, {"link": 3, "captions": None}]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, lines)))
    links = links_of(tmp_path / "a.jsonl", "jsonl", Columns(url="link", captions=None, sha256="md"))
    assert [(r["url"], r["captions"], r["md"]) for r in links] == [("http://a/1", ["a", "b"], "ab"), (None, [], None)]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.csv", "url,caption,id\nhttp://a/1,a,7\nhttp://a/1,b,7\nhttp://a/2,c,\n"),
        (
            "a.jsonl",
            '{"url": "http://a/1", "caption": "a", "id": 0}\n{"url": "http://a/2", "caption": "b", "id": "x"}\n',
        ),
    ],
)
def test_ids_of_lists_of_links_are_counted(tmp_path: Path, name: str, content: str) -> None:
    (tmp_path / name).write_text(content)
    partition = Partition(index=0, file=str(tmp_path / name), name=name, size=1)
    columns = Columns(url=None, captions=None, sha256=None)
    found = links.list_partition(partition, folder=str(tmp_path), kind=links.LIST, columns=columns, row_group_size=2)
    assert (found["file"]["rows"], found["unread"]) == (2, {"ids of lists": 2})


def test_files_of_a_list_may_differ_in_their_columns_and_be_empty(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    without_ray(monkeypatch)
    folder = tmp_path / "links"
    folder.mkdir()
    url, text = pa.array(["http://a/1"]), pa.array(["a"])
    pq.write_table(pa.table({"url": url[:0], "text": text[:0]}), folder / "0.parquet")
    pq.write_table(
        pa.table({"url": url, "text": text.dictionary_encode(), "width": pa.array([3], pa.int8())}),
        folder / "1.parquet",
    )
    pq.write_table(
        pa.table({"url": url.cast(pa.large_string()), "text": text, "width": [4], "note": ["x"]}), folder / "2.parquet"
    )
    (folder / "notes.md").write_text("x")
    settings = Fetch(links=str(folder), output=str(tmp_path / "out"), only_list=True)
    result = fetch(settings)
    assert result.summary == {"links": 2, "not_read": {"files .md": 1}} and len(result.files) == 2
    assert "2 links\nfound and not read: 1 files .md" in capsys.readouterr().out
    rows = [r for t in (pq.read_table(f) for f in sorted((tmp_path / "out").glob("*.parquet"))) for r in t.to_pylist()]
    assert [(r["captions"], r["width"]) for r in rows] == [(["a"], 3), (["a"], 4)]
    pq.write_table(pa.table({"url": url, "text": text, "width": ["wide"]}), folder / "3.parquet")
    with pytest.raises(ValueError, match=r"3.parquet has the column 'width' as string, .*1.parquet as int"):
        fetch(replace(settings, output=str(tmp_path / "other")))
    for file in folder.glob("*.parquet"):
        pq.write_table(pa.table({"url": url[:0], "text": text[:0]}), file)
    with pytest.raises(ValueError, match=r"links holds no links; found and not read: 1 files .md"):
        fetch(replace(settings, output=str(tmp_path / "third")))


COCO = {
    "images": [{"id": 1, "file_name": "1.jpg", "coco_url": "http://a/1", "height": 3}],
    "annotations": [{"image_id": 1, "caption": "a"}, {"image_id": 1, "caption": "b"}],
}
REDCAPS = {"info": {}, "annotations": [{"url": "http://a/1", "raw_caption": "A", "caption": "a", "score": 3}]}
LISTS: dict[str, tuple[str, bytes, list[Any], dict[str, int]]] = {
    "CC12M": ("l.tsv", b"http://a/1\ta cat\nhttp://a/2\tb\n", [("http://a/1", ["a cat"]), ("http://a/2", ["b"])], {}),
    "CC3M": ("l.tsv", b"a cat\thttp://a/1\n", [("http://a/1", ["a cat"])], {}),
    "gzip": ("l.csv.gz", gzip.compress(b"url,text\nhttp://a/1,a\n"), [("http://a/1", ["a"])], {}),
    "COCO": ("l.json", json.dumps(COCO).encode(), [("http://a/1", ["a", "b"])], {"ids of lists": 1}),
    "RedCaps": ("l.json", json.dumps(REDCAPS).encode(), [("http://a/1", ["a"])], {}),
    "lines of one address": (
        "l.csv", b"url,text\nhttp://a/1,a\nhttp://a/1,b\n,c\n,d\nhttp://a/1,e\n",
        [("http://a/1", ["a", "b"]), (None, ["c"]), (None, ["d"]), ("http://a/1", ["e"])], {},
    ),
    "lines that are none": (
        "l.jsonl", b'\xef\xbb\xbf{"url": "http://a/1", "text": "a\xe2\x80\xa8b"}\n\n[1]\n{"url": \n{"url": "\xff"}\n'
        b'{"url": "http://a/2", "text": "\\ud800"}\n',
        [("http://a/1", ["a\u2028b"]), ("http://a/2", [])],
        {"blank lines": 1, "line cannot be read": 2, "text is no Unicode": 1},
    ),
    "fields too many": ("l.csv", b"url,text\nhttp://a/1,a, b\nhttp://a/2,c\n", [("http://a/2", ["c"])],
                        {"line cannot be read": 1}),
    "no links": ("l.csv", b"url,text\n", [], {}),
    "nothing": ("l.csv", b"", [], {}),
}  # fmt: skip


@pytest.mark.parametrize("name", LISTS)
def test_every_line_of_a_list_of_links_is_read_or_counted(tmp_path: Path, name: str) -> None:
    file, content, expected, counted = LISTS[name]
    (tmp_path / file).write_bytes(content)
    unread = Counter[str]()
    found = links_of(tmp_path / file, links.LIST, unread=unread)
    assert [(r["url"], r["captions"]) for r in found] == expected and unread == counted
    if name in ("COCO", "RedCaps"):
        assert found[0].get("height", found[0].get("score")) == 3


def test_links_of_common_crawl(tmp_path: Path) -> None:
    from warcio.warcwriter import WARCWriter

    def page(address: str, base: str | None, *images: tuple[str, str | None]) -> dict[str, Any]:
        found = [{"path": "IMG@/src", "url": url} | ({"alt": alt} if alt is not None else {}) for url, alt in images]
        html: dict[str, Any] = {"Links": [{"path": "A@/href", "url": "/else", "alt": "no"}, *found]}
        html |= {"Head": {"Base": base}} if base else {}
        return {
            "Envelope": {
                "WARC-Header-Metadata": {"WARC-Target-URI": address},
                "Payload-Metadata": {"HTTP-Response-Metadata": {"HTML-Metadata": html}},
            }
        }

    pages = [
        page("http://a/x/y", None, ("i.png", " a cat "), ("/j.png", None), ("//b/k.png", "a dog"), ("l.png", "")),
        page("http://a/x/y", "/base/", ("i.png", "a bird"), ("http://[broken", "a fish")),
        {"Envelope": {"Payload-Metadata": {}}},
        {"Envelope": {"Payload-Metadata": {"HTTP-Response-Metadata": {"HTML-Metadata": {"Links": [3, {"url": 4}]}}}}},
        [],
    ]
    with (tmp_path / "a.warc.wat.gz").open("wb") as file:
        writer = WARCWriter(file, gzip=True)
        for content in pages:
            payload = io.BytesIO(json.dumps(content).encode())
            writer.write_record(
                writer.create_warc_record("http://a", "metadata", payload, warc_content_type="application/json")
            )
    links = links_of(tmp_path / "a.warc.wat.gz", "WAT")
    assert [(r["url"], r["captions"]) for r in links] == [
        ("http://a/x/i.png", ["a cat"]),
        ("http://b/k.png", ["a dog"]),
        ("http://a/base/i.png", ["a bird"]),
        ("http://[broken", ["a fish"]),
    ]
    assert links[0]["page"] == "http://a/x/y"


@pytest.mark.parametrize(
    ("name", "kind", "content", "message"),
    [
        ("a.csv", "csv", b"image,caption\na,b\n", "a.csv has no column url or URL"),
        ("a.csv", "csv", b"url,words\na,b\n", "a.csv has no column captions or caption"),
        ("a.csv", "csv", b"url,text,url\na,b,c\n", "a.csv has two columns named 'url'"),
        ("a.csv", "csv", b"url,text,image\na,b,c\n", "a.csv has a column 'image' already"),
        ("a.csv", "csv", b"url,text,keep_probability\na,b,c\n", "a.csv has a column 'keep_probability', a name that"),
        ("a.csv", "csv", b'url,text\na,"b', "a.csv, line 2: a field cannot be read"),
        ("a.csv", "csv", "url,text\na,b\n".encode("utf-16"), "a.csv is UTF-16"),
        ("a.jsonl", "jsonl", b"[1]\n", r"a.jsonl cannot be read: line 1: it holds '\[1\]'"),
        ("a.jsonl", "jsonl", b"{\n", "a.jsonl cannot be read: line 1: Expecting property name"),
        ("a.parquet", "parquet", b"junk", "a.parquet cannot be read as Parquet"),
        ("a.wat.gz", "WAT", b"junk", "a.wat.gz cannot be read as WAT"),
    ],
)
def test_lists_that_cannot_be_used(tmp_path: Path, name: str, kind: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=message):
        links_of(tmp_path / name, kind)


@pytest.mark.usefixtures("in_process", "undrawn")
def test_what_failed_is_tried_again_and_what_came_is_not(site: Site, tmp_path: Path) -> None:
    paths = [f"/good?{i}" for i in range(30)] + ["/gone?1", "/gone?2", "/noai", "/later", "/good?empty"]
    site.pages["/later"] = lambda h: h.answer(404)
    rows: dict[str, list[str | None]] = {
        "url": [*(site.address + p for p in paths), "nonsense", None],
        "text": [*(f"a cat, {i}" for i in range(len(paths) - 1)), None, "a dog", "a dog"],
        "id": [f"row-{i}" for i in range(len(paths) + 2)],
        "md": [hashlib.sha256(PICTURE).hexdigest()] + [None] * (len(paths) + 1),
    }
    (tmp_path / "links").mkdir()
    for i, part in enumerate((slice(0, 20), slice(20, None))):
        table = pa.table(
            {"url": rows["url"][part], "text": pa.array(rows["text"][part], pa.string()), "id": rows["id"][part]}
        )
        pq.write_table(
            table.append_column("md", pa.array(rows["md"][part], pa.string())), tmp_path / f"links/{i}.parquet"
        )
    settings = Fetch(
        links=str(tmp_path / "links"),
        output=str(tmp_path / "pool"),
        sha256_column="md",
        partition_rows=8,
        allow=("127.0.0.1/32",),
    )
    result = fetch(settings)
    failed = {"HTTP 410": 2, "invalid address": 2, "opted out of AI use": 1, "HTTP 404": 1, "no captions": 1}
    assert result.summary == {"links": 37, "fetched": 30, "failed": failed, "attempts": 1, "not_read": {}}
    assert {r["id"]: r["captions"] for r in read_all(tmp_path / "pool")} == {
        f"row-{i}": [f"a cat, {i}"] for i in range(30)
    }
    assert all(r["image"] == PICTURE for r in read_all(tmp_path / "pool"))

    site.pages["/later"] = site.pages["/good"]
    site.requests.clear()
    result = fetch(settings)
    assert dict(site.requests) == {"/gone?1": 1, "/gone?2": 1, "/later": 1}
    assert result.summary["fetched"] == 31 and result.summary["failed"] == {
        k: n for k, n in failed.items() if k != "HTTP 404"
    }
    reasons = [pq.read_table(f).to_pylist() for f in sorted((tmp_path / "pool/_failed/001").iterdir())]
    assert Counter(r["reason"] for partition in reasons for r in partition) == result.summary["failed"]
    assert curate(Curate(pool=settings.output, output=str(tmp_path / "curated"), metadata_min_count=1)).rows == 31


@pytest.mark.usefixtures("ray_session")
def test_workers_share_what_a_host_is_asked_for(site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """There are three CPUs, and no more workers than partitions."""

    def recording(*arguments: Any, shared: dict[str, Any], **options: Any) -> list[dict[str, Any]]:
        limits.extend([shared["limits"]] if "limits" in shared else [])
        return run(*arguments, shared=shared, **options)

    limits: list[Limits] = []
    monkeypatch.setattr("pipelines.stages.work.run", recording)
    rows = {"url": [f"{site.address}/good?{i}" for i in range(24)], "text": ["a cat"] * 24}
    pq.write_table(pa.table(rows), tmp_path / "links.parquet")
    for partition_rows in (24, 12, 6, 2):
        settings = Fetch(
            links=str(tmp_path / "links.parquet"),
            output=str(tmp_path / f"pool-{partition_rows}"),
            per_host=3,
            partition_rows=partition_rows,
            allow=("127.0.0.1/32",),
        )
        assert fetch(settings).summary["fetched"] == 24
    assert [of_worker.per_host for of_worker in limits] == [3, 1, 1, 1]
