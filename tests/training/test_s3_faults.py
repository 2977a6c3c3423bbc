"""An S3 service that fails while checkpoints are written: the run ends as if it had not."""

import http.client
import logging
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import fsspec
import pytest
from faults import survives
from noted_pretrain import noted

from llip.config import TrainingConfig
from llip.training import checkpoint
from llip.training.loop import train
from llip.training.parallel import current_world
from llip.training.tracking import Tracker

pytestmark = pytest.mark.slow


@dataclass
class Proxy:
    """Stands before the S3 service and fails `left` uploads to the folder of one checkpoint."""

    behind: str
    fault: str = "none"
    left: int = 0
    failed: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)

    def fails(self, method: str, path: str) -> bool:
        with self.lock:
            if method != "PUT" or "step-00000004" not in path or self.left == 0:
                return False
            self.left, self.failed = self.left - 1, self.failed + 1
            return True


def _handler(proxy: Proxy) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def forward(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            if proxy.fails(self.command, self.path):
                if proxy.fault == "reset":  # closing at once, without a goodbye
                    self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                    self.close_connection = True
                    self.connection.close()
                    return
                if proxy.fault == "503":
                    self.send_response(503)
                    self.send_header("Content-Length", "0")
                    self.end_headers()
                    return
                time.sleep(1.0)
            upstream = http.client.HTTPConnection(proxy.behind)
            upstream.request(self.command, self.path, body, dict(self.headers))
            answer = upstream.getresponse()
            content = answer.read()
            self.send_response(answer.status)
            for name, value in answer.getheaders():
                if name.lower() not in ("transfer-encoding", "connection", "content-length", "server", "date"):
                    self.send_header(name, value)
            length = answer.getheader("Content-Length") if self.command == "HEAD" else str(len(content))
            self.send_header("Content-Length", length or "0")
            self.end_headers()
            self.wfile.write(content)

        do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = forward

        def log_message(self, *_: object) -> None: ...

    return Handler


@pytest.fixture
def proxy(s3_server: str, s3_bucket: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Proxy]:
    proxy = Proxy(behind=s3_server.removeprefix("http://"))
    server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(proxy))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{server.server_address[1]}")
    fsspec.get_filesystem_class("s3").clear_instance_cache()
    yield proxy
    server.shutdown()
    fsspec.get_filesystem_class("s3").clear_instance_cache()


def _train(config: TrainingConfig, shards: str, folder: str) -> None:
    with noted(folder), Tracker(None, folder) as tracker:
        train(config, shards=shards, folder=folder, world=current_world(), tracker=tracker)


@pytest.mark.parametrize(("fault", "times"), [("503", 2), ("reset", 2), ("slow", 100), ("503", 1000)])
def test_s3_fails_during_a_checkpoint(
    fault: str,
    times: int,
    proxy: Proxy,
    small: TrainingConfig,
    shards: str,
    s3_bucket: str,
    run_folder: Callable[[str], str],
    caplog: pytest.LogCaptureFixture,
    record_property: Callable[[str, object], None],
) -> None:
    config = replace(small, keep_checkpoints=3)
    _train(config, shards, run_folder("whole"))
    proxy.fault, proxy.left = fault, times
    with caplog.at_level(logging.WARNING, "llip"):
        _train(config, shards, f"{s3_bucket}/run")
    assert proxy.failed
    folders = {uri.split("/")[-2] for uri in checkpoint.storage.listing(f"{s3_bucket}/run/checkpoints", "state.json")}
    outage = times == 1000
    assert folders == {f"step-0000000{step}" for step in (2, 4, 6) if step != 4 or not outage}
    assert ("step 4 was not written" in caplog.text) == outage
    ended = f"{'one checkpoint less' if outage else 'every checkpoint written'}; went on to the end"
    name = f"S3: {fault}, {proxy.failed} requests of a checkpoint"
    survives(record_property, name, ended, run=f"{s3_bucket}/run", undisturbed=run_folder("whole"))
