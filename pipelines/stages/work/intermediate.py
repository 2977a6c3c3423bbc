"""Tables that one pass leaves for the next: Arrow streams, which take a fraction of the time of Parquet's nested
columns, each followed by its checksum. Not compressed: numbers of a row take 50 bytes where its image takes 50,000.

Checksum: the sum of mix(w[i] ^ (i + 0x9E3779B97F4A7C15)) modulo 2^64 over the 8-byte little-endian words w of a
stream, whose length is a multiple of 8, with `mix` of `hashing`. Another word in one place always changes it. Its terms
do not wait for each other, as those of CRC-32 do.
"""

import numpy as np
import pyarrow as pa
from numba import types

from llip import storage
from pipelines.stages.compiled import In, jit
from pipelines.stages.hashing import GOLDEN, mix

CHECKSUM = 8
"""Bytes of it, little-endian."""


def write(folder: str, name: str, table: pa.Table) -> None:
    """Write `folder/name`, which appears whole or not at all."""
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as stream:
        stream.write_table(table)
    content = sink.getvalue()
    with storage.atomic_writer(storage.join(folder, name)) as file:
        file.write(content)
        file.write(_checksum(content).to_bytes(CHECKSUM, "little"))


def read(uri: str) -> pa.Table:
    """The table that `write` wrote. Raises ValueError where its bytes are others."""
    content = memoryview(storage.read_bytes(uri))
    content, end = content[:-CHECKSUM], content[-CHECKSUM:]
    if not content or len(content) % 8 or _checksum(content) != int.from_bytes(end, "little"):
        raise ValueError(f"{uri} is damaged: its checksum is another; remove its folder, and it is made again")
    return pa.ipc.open_stream(pa.py_buffer(content)).read_all()


def write_array(folder: str, name: str, values: np.ndarray) -> None:
    """Write numbers or flags [N] as `folder/name`."""
    write(folder, name, pa.table({"number": values}))


def read_array(uri: str) -> np.ndarray:
    """The numbers or flags [N] that `write_array` wrote. Raises ValueError as `read` does."""
    return read(uri).column(0).to_numpy()


def _checksum(content: pa.Buffer | memoryview) -> int:
    return int(_sum(np.frombuffer(content, np.uint64)))


@jit(types.uint64(In.uint64))
def _sum(words):
    total = np.uint64(0)
    for i in range(len(words)):
        total += mix(words[i] ^ (np.uint64(i) + GOLDEN))
    return total
