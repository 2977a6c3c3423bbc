"""An S3 service that misbehaves: a proxy in front of another that delays requests, or fails some of them."""

import http.client
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, ClassVar, Literal
from urllib.parse import urlsplit

HOP = ("connection", "transfer-encoding", "keep-alive", "content-length", "server", "date")
ERROR = b"<Error><Code>InternalError</Code><Message>We encountered an internal error.</Message></Error>"

Fault = Literal["500", "503", "reset", "slow"]
"""An error of the service, a connection closed without a goodbye, or an answer that takes another second."""


class Faults:
    """What goes wrong."""

    def __init__(self) -> None:
        self.fault: Callable[[str, str, int], Fault | None] = lambda method, path, number: None
        """Of (method, path, number of the request)."""
        self.latency = 0.0
        """Seconds before every answer."""
        self.requests = self.failed = 0
        self.lock = threading.Lock()

    def next(self, method: str, path: str) -> Fault | None:
        with self.lock:
            self.requests += 1
            fault = self.fault(method, path, self.requests)
            self.failed += fault is not None
            return fault


class _Proxy(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    behind: ClassVar[str]
    faults: ClassVar[Faults]

    def forward(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        time.sleep(self.faults.latency)
        match self.faults.next(self.command, self.path):
            case "reset":
                self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                self.close_connection = True
                self.connection.close()
                return
            case "500" | "503" as status:
                self.reply(int(status), {"Content-Type": "application/xml"}, ERROR)
                return
            case "slow":
                time.sleep(1.0)
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
