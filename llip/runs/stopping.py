"""Errors that end a run early, and the request to save and stop: a file in the run's folder, written on SIGTERM, which
reaches workers on any machine."""

import contextlib
import signal
import threading
import time
from collections.abc import Callable, Iterator
from types import FrameType

from llip import storage

NAME = "stop.json"
SECONDS_BETWEEN_LOOKS = 1.0

Stop = Callable[[], bool]
"""Whether this rank has been asked to stop."""


class StoppedError(RuntimeError):
    """The run was asked to stop and has saved where it is."""


class NonFiniteError(RuntimeError):
    """The loss or a gradient is not finite. No rank has made the update."""


class GaveUpError(RuntimeError):
    """The run failed again and again without any progress between; the message holds the last reason."""


def request_stop(run_folder: str) -> None:
    """Ask the run that trains in a folder to stop."""
    storage.write_json(storage.join(run_folder, NAME), {"asked": time.time()})


def stop_requested(run_folder: str) -> bool:
    return storage.exists(storage.join(run_folder, NAME))


def clear_stop(run_folder: str) -> None:
    storage.remove(storage.join(run_folder, NAME))


@contextlib.contextmanager
def on_sigterm(run_folder: str) -> Iterator[None]:
    """Ask the run to stop when SIGTERM comes to this process. In the main thread, where signals arrive."""

    def handle(number: int, frame: FrameType | None) -> None:
        threading.Thread(
            target=request_stop, args=(run_folder,)
        ).start()  # what it interrupts may hold locks of the storage

    before = signal.signal(signal.SIGTERM, handle)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@contextlib.contextmanager
def watched(run_folder: str) -> Iterator[Stop]:
    """Look for the request now and then, beside the training."""
    found, done = threading.Event(), threading.Event()

    def look() -> None:
        while not done.wait(SECONDS_BETWEEN_LOOKS):
            with contextlib.suppress(Exception):  # a storage that does not answer now is asked again
                if stop_requested(run_folder):
                    found.set()

    thread = threading.Thread(target=look, name="stop", daemon=True)
    thread.start()
    try:
        yield found.is_set
    finally:
        done.set()
