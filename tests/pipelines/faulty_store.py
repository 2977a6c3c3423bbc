"""An S3 service that fails at times: a proxy in front of another that answers some requests with an error itself."""

import http.client
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, ClassVar
from urllib.parse import urlsplit

HOP = ("connection", "transfer-encoding", "keep-alive", "content-length")
ERROR = b"<Error><Code>InternalError</Code><Message>We encountered an internal error.</Message></Error>"


class Faults:
    """Which requests fail."""

    def __init__(self) -> None:
        self.fails: Callable[[str, str, int], bool] = lambda method, path, number: False
        """Of (method, path, number of the request)."""
        self.requests = self.failed = 0
        self.lock = threading.Lock()

    def next(self, method: str, path: str) -> bool:
        with self.lock:
            self.requests += 1
            failing = self.fails(method, path, self.requests)
            self.failed += failing
            return failing


class _Proxy(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    behind: ClassVar[str]
    faults: ClassVar[Faults]

    def forward(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if self.faults.next(self.command, self.path):
            self.reply(500, {"Content-Type": "application/xml"}, ERROR)
            return
        upstream = http.client.HTTPConnection(self.behind, timeout=60)
        upstream.request(self.command, self.path, body, dict(self.headers))
        answer = upstream.getresponse()
        self.reply(answer.status, dict(answer.getheaders()), answer.read(), answer.getheader("Content-Length"))
        upstream.close()

    do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = forward

    def reply(self, status: int, headers: dict[str, str], body: bytes, length: str | None = None) -> None:
        self.send_response_only(status)
        for name, value in headers.items():
            if name.lower() not in HOP:
                self.send_header(name, value)
        self.send_header("Content-Length", length if self.command == "HEAD" and length else str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        pass


@contextmanager
def failing(endpoint: str) -> Iterator[tuple[str, Faults]]:
    """The address of a proxy in front of a service, and what decides over its faults."""
    faults = Faults()
    handler = type("Handler", (_Proxy,), {"behind": urlsplit(endpoint).netloc, "faults": faults})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}", faults
    server.shutdown()
    server.server_close()
