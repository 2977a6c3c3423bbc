"""Fetching images from hosts that misbehave, and from where nobody may connect to."""

import asyncio
import gzip
import hashlib
import struct
import time
import zlib
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
from helpers.misbehaving_server import Site, cut_off, endless, serving, stalled
from helpers.small_pools import picture

from pipelines.fetch import Fetch
from pipelines.stages.fetch.addresses import Allowed, parsed
from pipelines.stages.fetch.download import Client, FetchError, Limits

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


def slow(handler: Any) -> None:
    time.sleep(0.05)
    handler.answer(200, PICTURE)


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
        "/slow": slow,
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
