"""One command at a time on an output: a file in it that says who writes there, and that the writer still lives."""

import json
import os
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

from llip import storage

NAME = ".lock.json"
BEAT_SECONDS, STALE_SECONDS = 15.0, 90.0
"""How often a writer says that it lives, and after what silence it is taken for dead."""


@contextmanager
def only_writer(folder: str) -> Iterator[None]:
    """Hold a folder until the block ends. Raises ValueError, naming the process, where another one writes there: one
    that died, on this machine at once and else after STALE_SECONDS without a sign of it, is not in the way."""
    uri, token = storage.join(folder, NAME), uuid.uuid4().hex
    owner = {"host": socket.gethostname(), "pid": os.getpid(), "token": token, "started": time.ctime()}
    if not storage.create(uri, _content(owner)):
        other = _read(uri)
        if other is not None and _lives(other):
            raise ValueError(
                f"{folder} is being written by process {other['pid']} on {other['host']} since {other['started']}; wait"
                " for it or choose another output"
            )
        storage.write_bytes(uri, _content(owner))
        if (_read(uri) or owner)["token"] != token:
            raise ValueError(f"{folder} was taken over by another process at the same moment; choose another output")
    ended = threading.Event()
    beat = threading.Thread(target=_beat, args=(uri, owner, ended), daemon=True)
    beat.start()
    try:
        yield
    finally:
        ended.set()
        beat.join()
        if (_read(uri) or {}).get("token") == token:
            with suppress(OSError):
                storage.remove(uri)


def _content(owner: dict[str, Any]) -> bytes:
    return storage.to_json(owner | {"seen": time.time()})


def _read(uri: str) -> dict[str, Any] | None:
    """Who holds a folder; None where that has just ended or cannot be read."""
    try:
        value = json.loads(storage.read_bytes(uri))
    except (OSError, ValueError):
        return None
    known = isinstance(value, dict) and {"host", "pid", "token", "started", "seen"} <= value.keys()
    return value if known else None


def _lives(owner: dict[str, Any]) -> bool:
    if time.time() - owner["seen"] > STALE_SECONDS:
        return False
    if owner["host"] != socket.gethostname():
        return True
    try:
        os.kill(owner["pid"], 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # another user's
        return True
    return True


def _beat(uri: str, owner: dict[str, Any], ended: threading.Event) -> None:
    while not ended.wait(BEAT_SECONDS):
        with suppress(OSError):
            storage.write_bytes(uri, _content(owner))
