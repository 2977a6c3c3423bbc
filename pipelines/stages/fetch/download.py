"""Images by their address: an asynchronous client that treats hosts gently and trusts none of them."""

import asyncio
import hashlib
import random
import re
import socket
from collections import defaultdict
from dataclasses import dataclass
from typing import Any
from urllib.parse import urljoin

import aiohttp
from yarl import URL

from pipelines.stages import pixels
from pipelines.stages.fetch.addresses import Allowed, parsed
from pipelines.stages.pixels import UnusableImageError

REDIRECTS = (301, 302, 303, 307, 308)
MAX_REDIRECTS = 5
TRANSIENT = (408, 425, 429, 500, 502, 503, 504)
"""Status codes that are worth another attempt."""
OPT_OUT = {"noai", "noimageai"}
"""Directives of `X-Robots-Tag` that keep an image from training, whichever robot they are addressed to."""
LONGEST_WAIT = 30.0
"""Seconds between two attempts at most, whatever a server asks for."""
DNS_SECONDS = 300
CHUNK = 1 << 16


class FetchError(Exception):
    """An image that was not fetched: a reason out of few, and what exactly happened.

    It holds nothing that was answered: a list of links is no way to read what only this machine can reach.
    """

    def __init__(self, reason: str, detail: str = "", *, transient: bool = False, wait: float = 0.0) -> None:
        super().__init__(reason, detail)
        self.reason, self.detail = reason, detail
        self.transient, self.wait = transient, wait
        """Whether another attempt may succeed, and the seconds that the server asks to wait before it."""


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Limits of a client: sizes, times, and requests at once."""

    connections: int
    per_host: int
    timeout: float
    """Seconds for a request and its answer."""
    retries: int
    backoff: float
    """Seconds before the first retry; doubled each time."""
    max_bytes: int
    max_pixels: int
    user_agent: str
    allow: tuple[str, ...]
    """Networks that are not public and may be connected to all the same."""


class Client:
    """Fetches images inside an `async with` block; any number of `get` may wait at the same time.

    A request waits for its host first and for a connection then, so that a slow host holds up none but its own.
    """

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self._allowed = Allowed(limits.allow)
        self._slots = asyncio.Semaphore(limits.connections)
        self._hosts: defaultdict[str, asyncio.Semaphore] = defaultdict(lambda: asyncio.Semaphore(limits.per_host))

    async def __aenter__(self) -> "Client":
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0, ttl_dns_cache=DNS_SECONDS, socket_factory=self._socket),
            timeout=aiohttp.ClientTimeout(total=self.limits.timeout),
            headers={"User-Agent": self.limits.user_agent, "Accept": "image/*", "Accept-Encoding": "identity"},
            cookie_jar=aiohttp.DummyCookieJar(),
            auto_decompress=False,  # a compressed answer could unpack to more than the limit
        )
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._session.close()

    async def get(self, url: str, sha256: str | None = None) -> bytes:
        """The encoded image at an address. Raises FetchError."""
        target = _parsed(url)
        for _ in range(MAX_REDIRECTS + 1):
            answer = await self._patiently(target)
            if isinstance(answer, bytes):
                return self._checked(answer, sha256)
            target = _parsed(answer, target)
        raise FetchError("too many redirects", f"more than {MAX_REDIRECTS}")

    async def _patiently(self, url: URL) -> bytes | str:
        """The answer of one host, retried while it may yet succeed: a body, or where it redirects to."""
        async with self._hosts[str(url.host)]:  # kept while waiting: a host that is overloaded is asked less
            for attempt in range(self.limits.retries + 1):
                try:
                    async with self._slots:
                        return await self._request(url)
                except FetchError as error:
                    if not error.transient or attempt == self.limits.retries:
                        raise
                    delay = max(error.wait, self.limits.backoff * 2**attempt * random.uniform(0.5, 1.0))
                    await asyncio.sleep(min(delay, LONGEST_WAIT))
        raise AssertionError("the last attempt returns or raises")

    async def _request(self, url: URL) -> bytes | str:
        try:
            async with self._session.get(url, allow_redirects=False) as response:
                return await self._read(response)
        except ValueError as error:  # aiohttp.InvalidURL too: a host or port that cannot be
            raise FetchError("invalid address") from error
        except aiohttp.ClientConnectorDNSError as error:
            raise FetchError("name not resolved") from error
        except aiohttp.ClientConnectorError as error:
            if isinstance(error.os_error, PermissionError):
                raise FetchError("private address", str(error.os_error)) from error
            raise FetchError("connection failed", type(error.os_error).__name__, transient=True) from error
        except TimeoutError as error:
            raise FetchError("timed out", f"after {self.limits.timeout} s", transient=True) from error
        except aiohttp.ClientError as error:  # a connection that breaks, an answer that is not HTTP
            raise FetchError("connection failed", type(error).__name__, transient=True) from error

    async def _read(self, response: aiohttp.ClientResponse) -> bytes | str:
        tags = ",".join(response.headers.getall("X-Robots-Tag", [])).lower()
        if OPT_OUT & set(re.findall(r"\w+", tags)):
            raise FetchError("opted out of AI use")
        if response.status in REDIRECTS and "Location" in response.headers:
            return response.headers["Location"]
        if response.status != 200:
            wait = response.headers.get("Retry-After", "")
            raise FetchError(
                f"HTTP {response.status}",
                transient=response.status in TRANSIENT,
                wait=float(wait) if wait.isdecimal() else 0.0,
            )
        self._refuse_bytes(response.content_length or 0)
        body = bytearray()
        async for chunk in response.content.iter_chunked(CHUNK):
            body += chunk
            self._refuse_bytes(len(body))
        return bytes(body)

    def _refuse_bytes(self, count: int) -> None:
        if count > self.limits.max_bytes:
            raise FetchError("too many bytes", f"more than {self.limits.max_bytes:,}")

    def _checked(self, data: bytes, sha256: str | None) -> bytes:
        """The image, by its header: pixels are decoded when shards are made."""
        if sha256 is not None and hashlib.sha256(data).hexdigest() != sha256.lower():
            raise FetchError("wrong checksum")
        try:
            width, height = pixels.size(data)
        except UnusableImageError as error:
            raise FetchError("too many pixels" if str(error) == pixels.TOO_LARGE else "not an image") from error
        if width * height > self.limits.max_pixels:
            raise FetchError("too many pixels", f"{width} x {height}")
        return data

    def _socket(self, info: Any) -> socket.socket:
        """A socket for an address that was looked up: what is checked here is what is connected to."""
        family, kind, protocol, _, address = info
        if address[0] not in self._allowed:
            raise PermissionError(f"{address[0]} is not public")
        return socket.socket(family, kind, protocol)


def _parsed(url: str, base: URL | None = None) -> URL:
    """An address, or where one redirects to."""
    try:
        return parsed(urljoin(str(base), url) if base else url)
    except ValueError as error:
        detail = "a redirect to no http or https address" if base else f"{url[:200]!r} is no http or https address"
        raise FetchError("invalid address", detail) from error
