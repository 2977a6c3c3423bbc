"""Tables that one pass leaves for the next: Arrow streams, which take a fraction of the time of Parquet's nested
columns, each followed by its SHA-256. Not compressed: numbers of a row take 50 bytes where its picture takes 50,000."""

import hashlib

import pyarrow as pa

from llip import storage
from llip.data.manifest import FileEntry


def write(folder: str, name: str, table: pa.Table) -> FileEntry:
    """Write `folder/name`, which appears whole or not at all."""
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as stream:
        stream.write_table(table)
    content = sink.getvalue()
    checksum = hashlib.sha256(content)
    end = checksum.digest()
    with storage.atomic_writer(storage.join(folder, name)) as file:
        file.write(content)
        file.write(end)
    checksum.update(end)
    return FileEntry(name=name, rows=table.num_rows, bytes=content.size + len(end), sha256=checksum.hexdigest())


def read(uri: str) -> pa.Table:
    """The table that `write` wrote. Raises ValueError where its bytes are others."""
    content = memoryview(storage.read_bytes(uri))
    end = hashlib.sha256().digest_size
    if hashlib.sha256(content[:-end]).digest() != content[-end:]:
        raise ValueError(f"{uri} is damaged: its checksum is another; remove its folder, and it is made again")
    return pa.ipc.open_stream(pa.py_buffer(content[:-end])).read_all()
