"""Files between two passes that bring rows together: each partition writes its rows bin by bin, and whoever needs a bin
reads one range of bytes from each partition's file."""

from collections.abc import Sequence

import numpy as np
import pyarrow as pa

from llip import storage

Piece = tuple[str, int, int]
"""(file, first byte, one past the last)"""


def write(uri: str, table: pa.Table, order: np.ndarray, rows: np.ndarray) -> list[int]:
    """Write the rows `order` of a table, the first `rows[0]` of them as bin 0 and so on. Returns the bytes of each
    bin."""
    sizes = []
    with storage.atomic_writer(uri) as file:
        for begin, end in zip(np.cumsum(rows) - rows, np.cumsum(rows), strict=True):
            content = _stream(table.take(pa.array(order[begin:end]))) if end > begin else b""
            file.write(content)
            sizes.append(len(content))
    return sizes


def ends(sizes: Sequence[Sequence[int]]) -> list[np.ndarray]:
    """Ends of the bins of each file, int64 [bins + 1] after a zero. sizes: what `write` returned for each."""
    return [np.concatenate([[0], np.cumsum(of_file)]).astype(np.int64) for of_file in sizes]


def pieces(files: Sequence[str], ends_in_files: Sequence[np.ndarray], first: int, last: int) -> tuple[Piece, ...]:
    """Position of bins `first` to `last` in each file."""
    places = zip(files, ends_in_files, strict=True)
    return tuple((file, int(ends_of[first]), int(ends_of[last + 1])) for file, ends_of in places)


def read(some: Sequence[Piece]) -> list[pa.Table]:
    """The tables that lie in pieces; none where all are empty."""
    return [table for piece in some for table in _tables(*piece)]


def _stream(part: pa.Table) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, part.schema) as stream:
        stream.write_table(part.combine_chunks())
    return sink.getvalue().to_pybytes()


def _tables(file: str, begin: int, end: int) -> list[pa.Table]:
    if begin == end:
        return []
    fs, path = storage.filesystem(file)
    reader = pa.BufferReader(fs.cat_file(path, start=begin, end=end))
    tables = []
    while reader.tell() < end - begin:
        with pa.ipc.open_stream(reader) as stream:
            tables.append(stream.read_all())
    return tables
