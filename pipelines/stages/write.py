"""Parquet files that appear whole or not at all, with their checksum."""

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import IO

import pyarrow as pa
import pyarrow.parquet as pq

from llip import storage
from llip.data.manifest import FileEntry
from pipelines import schema as columns

DISTINCT = (columns.ID, columns.CAPTIONS, columns.URL)
"""Columns that hardly repeat a value: a dictionary of theirs is made to be thrown away."""
PLAIN = (columns.ID, columns.CAPTIONS)
"""Columns that are not compressed: that takes longer than to write them, for a thousandth of a file with images."""


class Hashing:
    """Passes bytes on to a file and takes their checksum on the way."""

    def __init__(self, file: IO[bytes]) -> None:
        self.file, self.sha256, self.bytes, self.closed = file, hashlib.sha256(), 0, False

    def write(self, data: bytes) -> int:
        self.sha256.update(data)
        self.bytes += len(data)
        return self.file.write(data)

    def flush(self) -> None:
        self.file.flush()

    def close(self) -> None:
        self.closed = True


class ParquetFile:
    """A file being written; after the `with` block of `parquet_file`, `entry` describes it."""

    def __init__(self, folder: str, name: str, schema: pa.Schema, file: IO[bytes]) -> None:
        self.folder, self.name, self.schema, self.rows = folder, name, schema, 0
        self._sink = Hashing(file)
        repeating, compressed = _leaves_but(DISTINCT, schema), _leaves_but(PLAIN, schema)
        self._writer = pq.ParquetWriter(
            pa.PythonFile(self._sink, "w"),
            schema,
            compression=dict.fromkeys(compressed, "zstd"),
            use_dictionary=repeating,
            write_statistics=repeating,  # those of images would be images
            write_page_checksum=True,
        )

    def write(self, table: pa.Table, row_group_size: int | None = None) -> None:
        """Append rows: one row group, or groups of the given size."""
        self._writer.write_table(table, row_group_size=row_group_size)
        self.rows += table.num_rows

    def close(self) -> None:
        self._writer.close()

    @property
    def entry(self) -> FileEntry:
        return FileEntry(name=self.name, rows=self.rows, bytes=self._sink.bytes, sha256=self._sink.sha256.hexdigest())


@contextmanager
def parquet_file(folder: str, name: str, schema: pa.Schema) -> Iterator[ParquetFile]:
    """Write `folder/name`; it appears when the block ends without an error."""
    with storage.atomic_writer(storage.join(folder, name)) as raw:
        file = ParquetFile(folder, name, schema, raw)
        yield file
        file.close()


def _leaves_but(names: Sequence[str], schema: pa.Schema) -> list[str]:
    """Paths of the Parquet columns of a table, without those of columns that are named and without images, which are
    compressed already."""
    fields = [field for field in schema if field.name not in names and not pa.types.is_binary(field.type)]
    return [leaf for field in fields for leaf in _leaves(field.name, field.type)]


def _leaves(path: str, kind: pa.DataType) -> list[str]:
    """Paths of the Parquet columns that hold an Arrow column."""
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        return _leaves(f"{path}.list.element", kind.value_type)
    if pa.types.is_struct(kind):
        return [leaf for field in kind for leaf in _leaves(f"{path}.{field.name}", field.type)]
    return [path]
