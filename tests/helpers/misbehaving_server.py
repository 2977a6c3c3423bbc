"""A web server on 127.0.0.1 that misbehaves in every way that the tests ask for."""

import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, ClassVar


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    site: ClassVar["Site"]

    def do_GET(self) -> None:
        site, path = self.site, self.path.partition("?")[0]
        with site.lock:
            site.requests[self.path] += 1
            site.open += 1
            site.most_open = max(site.most_open, site.open)
        try:
            site.pages.get(path, lambda h: h.answer(404))(self)
        except ConnectionError:
            pass  # the client gave up, as it should
        finally:
            with site.lock:
                site.open -= 1

    def answer(self, status: int, body: bytes = b"", **headers: str) -> None:
        """A whole answer; underscores in the names of headers stand for hyphens."""
        self.begin(status, **{"Content_Length": str(len(body))} | headers)
        self.wfile.write(body)

    def begin(self, status: int, **headers: str) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()

    def break_off(self) -> None:
        self.close_connection = True
        self.connection.shutdown(2)

    def count(self) -> int:
        """Which request for this address it is, from 1."""
        return self.site.requests[self.path]

    def log_message(self, *_: Any) -> None:
        pass


Page = Callable[[_Handler], None]


class Site:
    """What is served, and what was asked for."""

    def __init__(self, pages: dict[str, Page]) -> None:
        self.pages = pages
        self.requests: Counter[str] = Counter()
        self.lock = threading.Lock()
        self.open = self.most_open = 0
        self.address = ""


@contextmanager
def serving(pages: dict[str, Page]) -> Iterator[Site]:
    """Serve pages, by path, for as long as the block runs; others are 404."""
    site = Site(pages)
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"site": site}))
    site.address = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    yield site
    server.shutdown()
    server.server_close()


def endless(handler: _Handler) -> None:
    """A body without an announced length that does not end."""
    handler.begin(200, Connection="close")
    while True:
        handler.wfile.write(b"x" * 65536)


def stalled(handler: _Handler) -> None:
    """Headers, and then nothing for longer than the tests wait."""
    handler.begin(200, Content_Length="100")
    time.sleep(1.5)
    handler.break_off()


def cut_off(handler: _Handler) -> None:
    """Fewer bytes than announced."""
    handler.begin(200, Content_Length="1000")
    handler.wfile.write(b"x" * 10)
    handler.break_off()
