"""Fetching pictures from hosts that misbehave, and lists of links of every format."""

import asyncio
import csv
import gzip
import hashlib
import io
import json
import struct
import time
import zlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from helpers.misbehaving_server import Site, cut_off, endless, serving, stalled
from helpers.small_pools import picture, read_all

from pipelines.curate import Curate, curate
from pipelines.fetch import Fetch, fetch
from pipelines.stages.fetch import links
from pipelines.stages.fetch.addresses import Allowed
from pipelines.stages.fetch.download import Client, FetchError, Limits
from pipelines.stages.fetch.links import Columns
from pipelines.stages.work import Unit, run

PICTURE = picture(1)
LIMITS = Limits(
    connections=16,
    per_host=16,
    timeout=0.5,
    retries=2,
    backoff=0.01,
    max_bytes=100_000,
    max_pixels=10_000,
    user_agent="a test",
    allow=("127.0.0.1/32",),
)


def bomb() -> bytes:
    """The beginning of a PNG file that claims to be large."""
    header = b"IHDR" + struct.pack(">IIBBBBB", 20_000, 20_000, 1, 0, 0, 0, 0)
    return PICTURE[:12] + header + struct.pack(">I", zlib.crc32(header)) + PICTURE[33:]


@pytest.fixture
def site() -> Iterator[Site]:
    pages: dict[str, Any] = {
        "/good": lambda h: h.answer(200, PICTURE),
        "/agent": lambda h: h.answer(200 if h.headers["User-Agent"] == "a test" else 403, PICTURE),
        "/moved": lambda h: h.answer(302, Location="/a/../good"),
        "/gone": lambda h: h.answer(410),
        "/busy": lambda h: h.answer(503),
        "/busy-once": lambda h: h.answer(200, PICTURE) if h.count() > 1 else h.answer(503),
        "/patience": lambda h: h.answer(200, PICTURE) if h.count() > 1 else h.answer(429, Retry_After="1"),
        "/circle": lambda h: h.answer(301, Location="/circle"),
        "/inside": lambda h: h.answer(302, Location="http://127.0.0.2/"),
        "/metadata": lambda h: h.answer(302, Location="http://169.254.169.254/latest"),
        "/file": lambda h: h.answer(302, Location="file:///etc/passwd"),
        "/noai": lambda h: h.answer(200, PICTURE, X_Robots_Tag="somebot: noindex, NoAI"),
        "/noimageai": lambda h: h.answer(200, PICTURE, X_Robots_Tag="noimageai"),
        "/noindex": lambda h: h.answer(200, PICTURE, X_Robots_Tag="noindex"),
        "/announced": lambda h: h.begin(200, Content_Length="1000000"),
        "/endless": endless,
        "/stalled": stalled,
        "/cut-off": cut_off,
        "/broken": lambda h: h.break_off(),
        "/page": lambda h: h.answer(200, b"<html>not here</html>"),
        "/zipped": lambda h: h.answer(200, gzip.compress(PICTURE), Content_Encoding="gzip"),
        "/bomb": lambda h: h.answer(200, bomb()),
        "/large": lambda h: h.answer(200, picture(1, size=(200, 100))),
        "/slow": lambda h: time.sleep(0.05) or h.answer(200, PICTURE),
    }
    with serving(pages) as site:
        yield site


def get(url: str, limits: Limits = LIMITS, sha256: str | None = None) -> bytes:
    async def one() -> bytes:
        async with Client(limits) as client:
            return await client.get(url, sha256)

    return asyncio.run(one())


@pytest.mark.parametrize("path", ["/good", "/agent", "/moved", "/busy-once", "/noindex"])
def test_pictures_come(site: Site, path: str) -> None:
    assert get(site.address + path) == PICTURE


@pytest.mark.parametrize(
    ("path", "reason", "requests"),
    [
        ("/gone", "HTTP 410", 1),
        ("/missing", "HTTP 404", 1),
        ("/busy", "HTTP 503", 3),
        ("/circle", "too many redirects", 6),
        ("/inside", "private address", 1),
        ("/metadata", "private address", 1),
        ("/file", "invalid address", 1),
        ("/noai", "opted out of AI use", 1),
        ("/noimageai", "opted out of AI use", 1),
        ("/announced", "too many bytes", 1),
        ("/endless", "too many bytes", 1),
        ("/stalled", "timed out", 3),
        ("/cut-off", "connection failed", 3),
        ("/broken", "connection failed", 6),  # aiohttp repeats what ends before an answer once by itself
        ("/page", "not an image", 1),
        ("/zipped", "not an image", 1),
        ("/bomb", "too many pixels", 1),
        ("/large", "too many pixels", 1),
    ],
)
def test_failures_have_a_reason(site: Site, path: str, reason: str, requests: int) -> None:
    with pytest.raises(FetchError) as error:
        get(site.address + path)
    assert error.value.reason == reason and site.requests[path] == requests


@pytest.mark.parametrize(
    "url",
    [
        "http://[::ffff:127.0.0.1]:{}/good",
        "http://[::1]:{}/good",
        "http://127.0.0.1:{}/good",
        "http://localhost:{}/good",
        "http://0x7f.1:{}/good",
        "http://0.0.0.0:{}/good",
    ],
)
def test_addresses_that_are_not_public_are_refused_whatever_they_are_called(site: Site, url: str) -> None:
    with pytest.raises(FetchError) as error:
        get(url.format(site.address.rpartition(":")[2]), replace(LIMITS, allow=()))
    assert error.value.reason == "private address" and not site.requests


@pytest.mark.parametrize(
    "address",
    [
        "10.1.2.3",
        "172.16.0.1",
        "192.168.1.1",
        "100.64.0.1",
        "169.254.169.254",
        "224.0.0.1",
        "255.255.255.255",
        "::",
        "fe80::1%eth0",
        "fc00::1",
        "::ffff:10.0.0.1",
        "2002:0a00:0001::",
        "64:ff9b::a00:1",
        "ff02::1",
    ],
)
def test_what_is_not_public(address: str) -> None:
    assert address not in Allowed(())
    assert "8.8.8.8" in Allowed(()) and "2001:4860:4860::8888" in Allowed(()) and "64:ff9b::808:808" in Allowed(())


def test_a_network_may_be_allowed() -> None:
    assert "10.1.2.3" in Allowed(("10.0.0.0/8",)) and "192.168.0.1" not in Allowed(("10.0.0.0/8",))
    with pytest.raises(ValueError, match=r"--allow: .*write for instance"):
        Fetch(links="x", allow=("everything",))


@pytest.mark.parametrize("url", ["", "good", "ftp://127.0.0.1/x", "http://", "http://[::1", "http://.:99999/"])
def test_what_is_no_address(url: str) -> None:
    with pytest.raises(FetchError) as error:
        get(url)
    assert error.value.reason == "invalid address"


def test_a_name_that_does_not_exist() -> None:
    with pytest.raises(FetchError) as error:
        get("http://no-such-host.invalid/x")
    assert error.value.reason == "name not resolved"


def test_checksums_are_compared(site: Site) -> None:
    right = hashlib.sha256(PICTURE).hexdigest().upper()
    assert get(site.address + "/good", sha256=right) == PICTURE
    with pytest.raises(FetchError) as error:
        get(site.address + "/good", sha256="0" * 64)
    assert error.value.reason == "wrong checksum"


def test_a_server_may_ask_for_patience(site: Site) -> None:
    started = time.monotonic()
    assert get(site.address + "/patience") == PICTURE
    assert time.monotonic() - started >= 1.0


def test_a_host_is_asked_for_few_things_at_a_time(site: Site) -> None:
    async def many() -> None:
        async with Client(replace(LIMITS, per_host=2, timeout=10)) as client:
            await asyncio.gather(*(client.get(f"{site.address}/slow?{i}") for i in range(8)))

    asyncio.run(many())
    assert site.most_open == 2 and site.requests.total() == 8


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
    monkeypatch.setattr("pipelines.fetch.run", recording)
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
