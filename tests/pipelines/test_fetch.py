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
from contextlib import nullcontext
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
from pipelines.stages.fetch.addresses import Allowed, parsed
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
        "192.0.0.9",
        "192.0.0.192",
        "192.0.2.1",
        "168.63.129.16",
        "192.88.99.1",
        "198.18.0.1",
        "240.0.0.1",
        "::ffff:169.254.169.254",
        "::ffff:168.63.129.16",
        "::ffff:8.8.8.8",
        "::ffff:0:127.0.0.1",
        "::127.0.0.1",
        "::8.8.8.8",
        "64:ff9b::7f00:1",
        "64:ff9b::a83f:8110",
        "64:ff9b::c000:9",
        "64:ff9b:1::a00:1",
        "64:ff9b:1:ffff::808:808",
        "2002:7f00:1::",
        "2002:808:808::1",
        "2001:0:7f00:1::",
        "2001:0:4136:e378:8000:63bf:80ff:fffe",
        "2001:db8::1",
        "3fff::1",
        "fec0::1",
        "feff::1",
        "fd00:ec2::254",
        "100::1",
        "5f00::1",
        "ff0e::1",
    ],
)
def test_what_is_not_public(address: str) -> None:
    assert address not in Allowed(())


@pytest.mark.parametrize(
    "address", ["8.8.8.8", "192.0.1.1", "2001:4860:4860::8888", "2a00:1450::1", "64:ff9b::101:101"]
)
def test_what_is_public(address: str) -> None:
    assert address in Allowed(())


def test_a_network_may_be_allowed() -> None:
    assert "10.1.2.3" in Allowed(("10.0.0.0/8",)) and "192.168.0.1" not in Allowed(("10.0.0.0/8",))
    assert "fec0::1" in Allowed(("fec0::/10",)) and "::ffff:10.1.2.3" not in Allowed(("10.0.0.0/8",))
    with pytest.raises(ValueError, match=r"--allow: .*write for instance"):
        Fetch(links="x", allow=("everything",))


@pytest.mark.parametrize("url", ["", "good", "ftp://127.0.0.1/x", "http://", "http://[::1", "http://.:99999/"])
def test_what_is_no_address(url: str) -> None:
    with pytest.raises(FetchError) as error:
        get(url)
    assert error.value.reason == "invalid address"


@pytest.mark.parametrize(
    ("written", "sent"),
    [
        ("/a%2Fb%2fc.png", "/a%2Fb%2fc.png"),
        ("/x?sig=a%2Bb%3D+c%20d&e=&f&g=%7E~!$'()*,;:@/?", "/x?sig=a%2Bb%3D+c%20d&e=&f&g=%7E~!$'()*,;:@/?"),
        ("/x?b=2&a=1&a=0&X-Amz-Signature=0f%2F", "/x?b=2&a=1&a=0&X-Amz-Signature=0f%2F"),
        ("/a/./b/../c//d", "/a/./b/../c//d"),
        ("/100%.png", "/100%.png"),
        ("?q", "/?q"),
        ("", "/"),
        ("  /a.png \n", None),
        ("/a.png#part", "/a.png"),
        ("/a b.png", "/a%20b.png"),
        ("/caf\u00e9.png?\u732b", "/caf%C3%A9.png?%E7%8C%AB"),
        ('/a"<>^`{|}\\', "/a%22%3C%3E%5E%60%7B%7C%7D%5C"),
        ("/a\x01.png", "/a%01.png"),
        ("/line\nbreak.png", "/linebreak.png"),
    ],
)
def test_an_address_is_sent_as_it_stands(site: Site, written: str, sent: str | None) -> None:
    """But for blanks around it, and what may not be sent."""
    address = site.address + written if sent is not None else f"  {site.address}/a.png \n"
    with pytest.raises(FetchError, match="HTTP 404"):
        get(address)
    assert list(site.requests) == [sent or "/a.png"]


@pytest.mark.parametrize("location", ["/b%2Fc?s=%2B+", "b%2Fc?s=%2B+", "{}/b%2Fc?s=%2B+", "//{}/b%2Fc?s=%2B+"])
def test_a_redirect_is_followed_as_it_stands(site: Site, location: str) -> None:
    address = site.address if location.startswith("{") else site.address.removeprefix("http://")
    site.pages["/from"] = lambda h: h.answer(302, Location=location.format(address))
    with pytest.raises(FetchError, match="HTTP 404"):
        get(site.address + "/from")
    assert list(site.requests) == ["/from", "/b%2Fc?s=%2B+"]


def test_names_in_other_scripts_are_sent_in_the_form_for_them() -> None:
    assert str(parsed("HTTP://B\u00fccher.example:8080/a%2fb")) == "http://xn--bcher-kva.example:8080/a%2fb"


def test_a_name_that_resolves_to_another_address_later_is_checked_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """Public when it was looked at, of this machine when it is connected to."""

    async def resolve(*_: Any, **__: Any) -> list[dict[str, Any]]:
        return [{"hostname": "h", "host": "127.0.0.1", "port": 80, "family": 2, "proto": 0, "flags": 0}]

    monkeypatch.setattr("aiohttp.resolver.ThreadedResolver.resolve", resolve)
    monkeypatch.setattr("aiohttp.resolver.AsyncResolver.resolve", resolve, raising=False)
    with pytest.raises(FetchError, match="private address"):
        get("http://example.com/x", replace(LIMITS, allow=()))


@pytest.mark.parametrize(
    "page",
    [
        lambda h: h.answer(200, b"SECRET page"),
        lambda h: h.answer(302, Location="gopher://SECRET/"),
        lambda h: h.answer(302, Location="http://SECRET.invalid/"),
        lambda h: h.answer(302, Location="/SECRET"),
        lambda h: h.answer(200, PICTURE, X_Robots_Tag="noai, SECRET"),
        lambda h: h.wfile.write(b"SECRET is no HTTP\r\n\r\n"),
        lambda h: h.wfile.write(b"HTTP/1.1 404 SECRET\r\nContent-Length: 0\r\n\r\n"),
        lambda h: h.wfile.write(b"HTTP/1.1 200 OK\r\nSECRET\r\n\r\n"),
    ],
)
def test_an_error_holds_nothing_of_what_was_answered(site: Site, page: Any) -> None:
    site.pages["/secret"] = page
    site.pages["/SECRET"] = lambda h: h.answer(302, Location="/SECRET")
    with pytest.raises(FetchError) as error:
        get(site.address + "/secret")
    assert "secret" not in (error.value.reason + error.value.detail).lower()


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
