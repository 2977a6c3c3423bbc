"""Images of an evaluation set: its column `image` holds their encoded bytes, or references to them.

References keep a set of any size out of memory, and let each worker fetch its own images.
"""

import io
from functools import lru_cache
from threading import Lock
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from llip import storage

PART = pa.struct([("uri", pa.string()), ("offset", pa.int64()), ("size", pa.int64())])
"""Bytes of a file, such as a member of a tar; null `size`: the whole file."""
CELL = pa.struct([("uri", pa.string()), ("row_group", pa.int32()), ("row", pa.int32())])
"""A value in the column `image` of a Parquet file; `row` counts within the row group."""

BOX = ("left", "top", "width", "height")
CROP = pa.struct([("uri", pa.string()), *((side, pa.int64()) for side in BOX)])
"""Crop of an image file, in pixels; nulls: the whole image."""

_group_lock = Lock()


def encoded(value: bytes | dict[str, Any]) -> bytes:
    """The bytes of an image, given them or a reference. Raises OSError where a reference leads nowhere."""
    match value:
        case {"uri": uri, "offset": offset, "size": size}:
            fs, path = storage.filesystem(uri)
            return bytes(fs.cat_file(path, start=offset, end=None if size is None else offset + size))
        case {"uri": uri, "left": None}:
            return storage.read_bytes(uri)
        case {"uri": uri, "left": left, "top": top, "width": width, "height": height}:
            with Image.open(io.BytesIO(storage.read_bytes(uri))) as whole, io.BytesIO() as buffer:
                whole.convert("RGB").crop((left, top, left + width, top + height)).save(buffer, "PNG")
                return buffer.getvalue()
        case {"uri": uri, "row_group": group, "row": row}:
            with _group_lock:  # else the threads that decode a batch would each read its row group
                cell = _row_group(uri, group)[row].as_py()
            content = cell["bytes"] if isinstance(cell, dict) else cell
            if content is None:
                raise OSError(f"row {row} of row group {group} of {uri} has no bytes")
            return content
        case _:
            assert isinstance(value, bytes)
            return value


@lru_cache(maxsize=2)
def _row_group(uri: str, group: int) -> pa.ChunkedArray:
    with storage.opened(uri) as file:
        return pq.ParquetFile(file).read_row_group(group, columns=["image"])["image"]
