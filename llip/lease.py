"""One writer a folder: a lease that a process holds while it trains or writes there, on a disk or in a bucket.

A lease is a hidden file of the folder. It names host, process and the time of its last heartbeat. It is free where its
process has ended on this machine, and elsewhere once the heartbeat is older than STALE_SECONDS: clocks of machines have
to agree to within that.
"""

import contextlib
import fcntl
import logging
import os
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil

from llip import storage

logger = logging.getLogger(__name__)

NAME = ".writer.json"
HEARTBEAT_SECONDS, STALE_SECONDS = 15.0, 120.0
LOOK_SECONDS = 1.0
SETTLE_SECONDS = 2.0
"""In a bucket, where nothing can be written on a condition: the last of several that write at once holds the lease."""


@contextlib.contextmanager
def sole_writer(folder: str) -> Iterator[None]:
    """Hold the lease of a folder. Raises ValueError, naming host and process, where another one holds it.

    A process that finds its lease taken over, because it stood still for long, ends at once: it may write no more.
    """
    lease = {
        "owner": uuid.uuid4().hex,
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "started": psutil.Process().create_time(),
    }
    uri = storage.join(folder, NAME)
    _outwait(uri)
    if holder := _take(folder, uri, lease):
        raise ValueError(_refusal(folder, holder))
    ended = threading.Event()
    thread = threading.Thread(target=_keep, args=(uri, lease, ended), name="lease", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
        with contextlib.suppress(Exception):  # a lease that stays ends by its age
            if _read(uri).get("owner") == lease["owner"]:
                storage.remove(uri)


def _outwait(uri: str) -> None:
    """Wait until a holder on another machine shows that it lives, or its lease is stale: what submits a driver again
    that died may do so within seconds, and elsewhere."""
    holder = _read(uri)
    while holder and holder["host"] != socket.gethostname() and _lives(holder):
        time.sleep(LOOK_SECONDS)
        found = _read(uri)
        if found.get("heartbeat") != holder["heartbeat"]:
            return


def _take(folder: str, uri: str, lease: dict[str, Any]) -> dict[str, Any]:
    """Take the lease unless another one that lives holds it: that one's; empty where it was taken."""
    with _locked(folder):
        if (holder := _read(uri)) and _lives(holder):
            return holder
        _write(uri, lease)
    if storage.is_local(uri):
        return {}
    time.sleep(SETTLE_SECONDS)
    holder = _read(uri)
    if holder.get("owner") == lease["owner"]:
        return {}
    return holder if holder and _lives(holder) else _take(folder, uri, lease)


@contextlib.contextmanager
def _locked(folder: str) -> Iterator[None]:
    """Keep the other processes of this machine from looking at a local folder's lease between look and write."""
    if not storage.is_local(folder):
        yield
        return
    place = Path(storage.absolute(folder))
    try:
        place.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(place, os.O_RDONLY)
    except OSError as error:
        raise storage.PlaceError(error.errno, f"{folder} cannot be written ({error.strerror})") from error
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _refusal(folder: str, holder: dict[str, Any]) -> str:
    age = max(0, round(time.time() - holder["heartbeat"]))
    return (
        f"{folder} is being written by process {holder['pid']} on {holder['host']} (last seen {age} s ago); wait for "
        "its end, or choose another output (of a run: another --name). If it died, the folder is free "
        f"{STALE_SECONDS:.0f} s after it was seen"
    )


def _lives(holder: dict[str, Any]) -> bool:
    if holder["host"] != socket.gethostname():
        return bool(time.time() - holder["heartbeat"] < STALE_SECONDS)
    try:
        process = psutil.Process(holder["pid"])
        return process.create_time() == holder["started"] and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def _keep(uri: str, lease: dict[str, Any], ended: threading.Event) -> None:
    """Renew the heartbeat until the end."""
    while not ended.wait(HEARTBEAT_SECONDS):
        try:
            holder = _read(uri)
            if holder and holder.get("owner") != lease["owner"]:
                logger.error("%s: process %s on %s has taken over; this one stops", uri, holder["pid"], holder["host"])
                os._exit(1)  # nothing else ends a process for certain: SIGINT is ignored in the background
            _write(uri, lease)
        except Exception as error:  # a storage that does not answer now is asked again
            logger.warning("%s cannot be renewed now (%s)", uri, error)


def _read(uri: str) -> dict[str, Any]:
    """The lease; empty where there is none, or one that cannot be read."""
    try:
        found = storage.read_json(uri) if storage.exists(uri) else {}
    except (ValueError, FileNotFoundError):
        return {}
    complete = isinstance(found, dict) and {"owner", "host", "pid", "started", "heartbeat"} <= found.keys()
    return found if complete else {}


def _write(uri: str, lease: dict[str, Any]) -> None:
    storage.write_json(uri, lease | {"heartbeat": time.time()})
