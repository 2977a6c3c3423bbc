"""One process trains in a run folder at a time, and what died does not block it."""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import psutil
import pytest

from llip import lease, storage
from llip.lease import NAME, sole_writer

HOLD = """
import sys, time
from llip.lease import sole_writer
with sole_writer(sys.argv[1]):
    print("held", flush=True)
    time.sleep(60)
"""


def write(folder: str, **changes: object) -> None:
    """A lease of a process that lives, on this machine, with changes."""
    parent = psutil.Process(os.getppid())
    holder = {"owner": "x", "host": socket.gethostname(), "pid": parent.pid, "started": parent.create_time()}
    heartbeat = time.time() - float(str(changes.pop("age", 0)))
    storage.write_json(f"{folder}/{NAME}", holder | {"heartbeat": heartbeat} | changes)


@pytest.fixture(params=["disk", "bucket"])
def folder(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setattr(lease, "SETTLE_SECONDS", 0.05)
    monkeypatch.setattr(lease, "LOOK_SECONDS", 0.05)
    return str(tmp_path / "run") if request.param == "disk" else f"{request.getfixturevalue('s3_bucket')}/runs/lease"


def test_a_lease_is_free_again_after_its_holder(folder: str) -> None:
    for _ in range(2):
        with sole_writer(folder):
            held = storage.read_json(f"{folder}/{NAME}")
            assert held["pid"] == os.getpid() and abs(held["heartbeat"] - time.time()) < 10
        assert not storage.exists(f"{folder}/{NAME}")
    with pytest.raises(RuntimeError), sole_writer(folder):
        raise RuntimeError
    assert not storage.exists(f"{folder}/{NAME}")


@pytest.mark.parametrize("holder", [{}, {"heartbeat": 0.0}])
def test_a_second_process_is_refused_while_the_first_lives(folder: str, holder: dict[str, object]) -> None:
    write(folder, **holder)
    with (
        pytest.raises(ValueError, match=r"is being written by process \d+ on .*; wait for its end"),
        sole_writer(folder),
    ):
        pass
    assert storage.read_json(f"{folder}/{NAME}")["owner"] == "x"


@pytest.mark.parametrize(
    "holder",
    [
        {"pid": 2**22 + 1},
        {"started": 1.0},
        {"host": "node7", "age": lease.STALE_SECONDS + 5},
        {"host": "node7", "heartbeat": 0.0},
    ],
)
def test_the_lease_of_a_dead_process_is_taken_at_once_and_a_stale_one_by_its_age(
    folder: str, holder: dict[str, object]
) -> None:
    write(folder, **holder)
    with sole_writer(folder):
        assert storage.read_json(f"{folder}/{NAME}")["pid"] == os.getpid()


@pytest.mark.parametrize("lives", [True, False])
def test_a_holder_elsewhere_is_refused_once_it_shows_that_it_lives(
    lives: bool, folder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that died a moment ago is waited for: its driver may have been submitted again at once, to another node."""
    monkeypatch.setattr(lease, "STALE_SECONDS", 5.0)
    write(folder, host="node7", age=3 if lives else 4.5)
    renewing = threading.Timer(0.5, write, (folder,), {"host": "node7"})
    if not lives:
        with sole_writer(folder):
            assert storage.read_json(f"{folder}/{NAME}")["pid"] == os.getpid()
        return
    renewing.start()
    with pytest.raises(ValueError, match=r"is being written by process \d+ on node7"), sole_writer(folder):
        pass
    renewing.join()


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"owner": "x"}'])
def test_a_broken_lease_holds_nothing(tmp_path: Path, content: bytes) -> None:
    (tmp_path / NAME).write_bytes(content)
    with sole_writer(str(tmp_path)):
        assert json.loads((tmp_path / NAME).read_text())["pid"] == os.getpid()


def test_a_killed_process_frees_its_folder_and_a_stopped_one_does_not(tmp_path: Path) -> None:
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE)
    assert process.stdout is not None and process.stdout.readline() == b"held\n"
    process.send_signal(signal.SIGSTOP)
    with pytest.raises(ValueError, match=f"process {process.pid} on"), sole_writer(str(tmp_path)):
        pass
    process.kill()
    process.wait()
    with sole_writer(str(tmp_path)):
        pass


def test_of_many_that_start_at_once_one_holds_the_lease(tmp_path: Path) -> None:
    gate, held, refused = threading.Barrier(8), list[int](), list[int]()

    def start() -> None:
        gate.wait()
        try:
            with sole_writer(str(tmp_path)):
                held.append(1)
                ended.wait()
        except ValueError:
            refused.append(1)

    ended = threading.Event()
    threads = [threading.Thread(target=start) for _ in range(8)]
    for thread in threads:
        thread.start()
    while len(held) + len(refused) < 8:
        time.sleep(0.01)
    ended.set()
    for thread in threads:
        thread.join()
    assert (len(held), len(refused)) == (1, 7)


def test_the_heartbeat_is_renewed_and_a_process_whose_lease_was_taken_over_ends(tmp_path: Path) -> None:
    impatient = HOLD.replace("with sole", "from llip import lease\nlease.HEARTBEAT_SECONDS = 0.02\nwith sole")
    process = subprocess.Popen([sys.executable, "-c", impatient, str(tmp_path)], stdout=subprocess.PIPE)
    assert process.stdout is not None and process.stdout.readline() == b"held\n"
    first = json.loads((tmp_path / NAME).read_text())["heartbeat"]
    while json.loads((tmp_path / NAME).read_text())["heartbeat"] == first:
        time.sleep(0.01)
    while process.poll() is None:  # a renewal that was under way may have replaced it
        write(str(tmp_path), host="node7")
        time.sleep(0.05)
    assert process.wait() == 1
    assert json.loads((tmp_path / NAME).read_text())["owner"] == "x", "the lease of the other stays"
