"""The tests' own S3 service, and what makes `s3://` mean it."""

import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from helpers.ports import free_ports


def s3_environment(endpoint: str) -> dict[str, str]:
    """Variables for a service at this URL."""
    names = {"ENDPOINT_URL": endpoint, "ACCESS_KEY_ID": "test", "SECRET_ACCESS_KEY": "test"}
    return {f"AWS_{name}": value for name, value in names.items()} | {"AWS_DEFAULT_REGION": "us-east-1"}


@contextmanager
def service(log: Path) -> Iterator[str]:
    """An S3 service in a process of its own, which other processes reach too; the URL of its endpoint."""
    (port,) = free_ports(1)
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    with log.open("wb") as output, subprocess.Popen(command, stdout=output, stderr=output) as server:
        try:
            deadline = time.monotonic() + 60
            while socket.socket().connect_ex(("127.0.0.1", port)):
                assert server.poll() is None and time.monotonic() < deadline, "the S3 service does not start"
                time.sleep(0.1)
            yield f"http://127.0.0.1:{port}"
        finally:
            server.terminate()
