"""Tables that one pass leaves for the next: Arrow streams, which take a fraction of the time of Parquet's nested
columns, each followed by its CRC-32. Not compressed: numbers of a row take 50 bytes where its picture takes 50,000."""

import zlib

import pyarrow as pa

from llip import storage

CHECKSUM = 4
"""Bytes of it, little-endian."""


def write(folder: str, name: str, table: pa.Table) -> None:
    """Write `folder/name`, which appears whole or not at all."""
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as stream:
        stream.write_table(table)
    content = sink.getvalue()
    with storage.atomic_writer(storage.join(folder, name)) as file:
        file.write(content)
        file.write(zlib.crc32(content).to_bytes(CHECKSUM, "little"))


def read(uri: str) -> pa.Table:
    """The table that `write` wrote. Raises ValueError where its bytes are others."""
    content = memoryview(storage.read_bytes(uri))
    content, end = content[:-CHECKSUM], content[-CHECKSUM:]
    if zlib.crc32(content) != int.from_bytes(end, "little"):
        raise ValueError(f"{uri} is damaged: its checksum is another; remove its folder, and it is made again")
    return pa.ipc.open_stream(pa.py_buffer(content)).read_all()
