"""The primary record of a run: `metrics.jsonl` in its folder, one JSON object a logged step. It needs no server."""

import json
import time
from collections.abc import Mapping
from typing import Any

from llip import storage

NAME = "metrics.jsonl"
SECONDS_BETWEEN_WRITES = 10.0


class Record:
    """Lines in memory and, since an object store cannot append, in a file that is written whole now and then."""

    def __init__(self, folder: str) -> None:
        self._uri = storage.join(folder, NAME)
        self._lines = read(folder)
        self._written = time.monotonic()
        self._dirty = False

    def rewind(self, step: int) -> None:
        """Forget what comes after `step`: a resumed run does it again."""
        self._lines = [line for line in self._lines if line["step"] <= step]

    def append(self, step: int, values: Mapping[str, float]) -> None:
        self._lines.append({"step": step, **values})
        self._dirty = True

    @property
    def due(self) -> bool:
        """Whether the file was written long ago."""
        return time.monotonic() - self._written > SECONDS_BETWEEN_WRITES

    def flush(self) -> None:
        """Write the file. What a checkpoint holds has always been recorded, so a killed run loses no line."""
        self._written = time.monotonic()
        if self._dirty:
            storage.write_bytes(self._uri, "".join(json.dumps(line) + "\n" for line in self._lines).encode())
        self._dirty = False


def read(folder: str) -> list[dict[str, Any]]:
    """The recorded lines of a run, oldest first; none where there is no record."""
    uri = storage.join(folder, NAME)
    return [json.loads(line) for line in storage.read_bytes(uri).splitlines()] if storage.exists(uri) else []
