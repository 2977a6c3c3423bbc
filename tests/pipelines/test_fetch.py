"""Lists of links of every format, and pools that are fetched from them."""

import csv
import hashlib
import io
import json
from collections import Counter
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from helpers.misbehaving_server import Site, serving
from helpers.small_pools import picture, read_all

from pipelines.curate import Curate, curate
from pipelines.fetch import Fetch, fetch
from pipelines.stages.fetch import links
from pipelines.stages.fetch.download import Limits
from pipelines.stages.fetch.links import Columns
from pipelines.stages.work import Unit, run

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


def links_of(file: Path, kind: str, columns: Columns | None = None) -> list[dict[str, Any]]:
    unit = Unit(index=0, file=str(file), name=file.name, size=1)
    columns = columns or Columns(url=None, captions=None, sha256=None)
    links.list_unit(unit, folder=str(file.parent), kind=kind, columns=columns, row_group_size=2)
    return pq.read_table(file.parent / links.links_name(unit)).to_pylist()


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
    assert kind != "parquet" or link.keys() == {"id", "captions", "url", "score"}
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
            unit = Unit(index=i, file=str(tmp_path / name), name=name, size=1)
            links.list_unit(unit, folder=str(tmp_path), kind="parquet", columns=columns, row_group_size=2)
            listed.append((str(tmp_path / links.links_name(unit)), name))
        links.refuse_repeated_ids(listed, sum(map(len, files)))


@pytest.mark.usefixtures("ray_session")
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
    }
    lines = [{"link": "http://a/1", "captions": ["a", "b"], "md": "ab"}, {"link": 3, "captions": None}]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, lines)))
    links = links_of(tmp_path / "a.jsonl", "jsonl", Columns(url="link", captions=None, sha256="md"))
    assert [(r["url"], r["captions"], r["md"]) for r in links] == [("http://a/1", ["a", "b"], "ab"), (None, [], None)]


def test_links_of_common_crawl(tmp_path: Path) -> None:
    from warcio.warcwriter import WARCWriter

    def page(address: str, base: str | None, *images: tuple[str, str | None]) -> dict[str, Any]:
        found = [{"path": "IMG@/src", "url": url} | ({"alt": alt} if alt is not None else {}) for url, alt in images]
        html = {"Links": [{"path": "A@/href", "url": "/else", "alt": "no"}, *found]}
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
        ("a.csv", "csv", b"image,caption\n", "a.csv has no column url or URL"),
        ("a.csv", "csv", b"url,words\n", "a.csv has no column captions or caption"),
        ("a.csv", "csv", b"url,text\n", "a.csv holds no links"),
        ("a.csv", "csv", b"url,text\n\xff\xff,a\n", "a.csv cannot be read as csv"),
        ("a.jsonl", "jsonl", b"[1]\n", r"a.jsonl: line 1 holds '\[1\]'"),
        ("a.jsonl", "jsonl", b"{\n", "a.jsonl cannot be read as jsonl"),
        ("a.parquet", "parquet", b"junk", "a.parquet cannot be read as Parquet"),
        ("a.wat.gz", "WAT", b"junk", "a.wat.gz cannot be read as WAT"),
    ],
)
def test_lists_that_cannot_be_used(tmp_path: Path, name: str, kind: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=message):
        links_of(tmp_path / name, kind)


@pytest.mark.usefixtures("ray_session")
def test_what_failed_is_tried_again_and_what_came_is_not(site: Site, tmp_path: Path) -> None:
    paths = [f"/good?{i}" for i in range(30)] + ["/gone?1", "/gone?2", "/noai", "/later", "/good?empty"]
    site.pages["/later"] = lambda h: h.answer(404)
    rows = {
        "url": [site.address + p for p in paths] + ["nonsense", None],
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
        unit_rows=8,
        allow=("127.0.0.1/32",),
    )
    result = fetch(settings)
    failed = {"HTTP 410": 2, "invalid address": 2, "opted out of AI use": 1, "HTTP 404": 1, "no captions": 1}
    assert result.summary == {"links": 37, "fetched": 30, "failed": failed, "attempts": 1}
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
    assert Counter(r["reason"] for unit in reasons for r in unit) == result.summary["failed"]
    assert curate(Curate(pool=settings.output, output=str(tmp_path / "curated"), metadata_min_count=1)).rows == 31


@pytest.mark.usefixtures("ray_session")
def test_workers_share_what_a_host_is_asked_for(site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """There are four CPUs, and no more workers than units."""

    def recording(*arguments: Any, shared: dict[str, Any], **options: Any) -> list[dict[str, Any]]:
        limits.extend([shared["limits"]] if "limits" in shared else [])
        return run(*arguments, shared=shared, **options)

    limits: list[Limits] = []
    monkeypatch.setattr("pipelines.stages.work.run", recording)
    rows = {"url": [f"{site.address}/good?{i}" for i in range(24)], "text": ["a cat"] * 24}
    pq.write_table(pa.table(rows), tmp_path / "links.parquet")
    for unit_rows in (24, 12, 6, 2):
        settings = Fetch(
            links=str(tmp_path / "links.parquet"),
            output=str(tmp_path / f"pool-{unit_rows}"),
            per_host=3,
            unit_rows=unit_rows,
            allow=("127.0.0.1/32",),
        )
        assert fetch(settings).summary["fetched"] == 24
    assert [of_worker.per_host for of_worker in limits] == [3, 1, 1, 1]
