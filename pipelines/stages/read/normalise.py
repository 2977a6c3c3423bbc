"""From the columns that pools come with to the columns of `pipelines.schema`."""

import hashlib
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipelines import schema

BATCH_ROWS = 256
"""Rows of a table that passes from reading to matching and writing: encoded images of so many fit in memory."""


def prefix(name: str) -> str:
    """What ids of a file begin with whose rows bring none: a hash of its path inside the pool."""
    return hashlib.blake2b(name.encode(), digest_size=8).hexdigest()


def derived_ids(name: str, rows: range) -> pa.Array:
    """Ids of rows that bring none: the file's prefix, and the row's number in the file."""
    start = prefix(name)
    return pa.array([f"{start}-{row:09d}" for row in rows], pa.string())


def batched(rows: Iterable[dict[str, Any]]) -> Iterator[pa.Table]:
    """Tables of rows that were read one by one."""
    remaining = iter(rows)
    while batch := list(islice(remaining, BATCH_ROWS)):
        yield pa.Table.from_pylist(batch, schema=schema.with_extras([]))


def captions_of(record: dict[str, Any]) -> list[str]:
    """Captions of a row that was read from JSON or CSV: `captions`, or a single `caption` or `text`; none of another
    type."""
    value = next((record[name] for name in (schema.CAPTIONS, *schema.SINGLE_CAPTION) if name in record), None)
    values = value if isinstance(value, list) else [value]
    return [text for text in values if isinstance(text, str)]


def caption_column(names: list[str], where: str) -> str:
    """The column that holds the captions. Raises ValueError where there is none, or where it would be a guess."""
    if schema.CAPTIONS in names:
        return schema.CAPTIONS
    found = [name for name in schema.SINGLE_CAPTION if name in names]
    if len(found) == 1:
        return found[0]
    if found:
        raise ValueError(
            f"{where} has the columns {' and '.join(found)}; leave one, or bring a list column {schema.CAPTIONS!r}"
        )
    wanted = f"{schema.CAPTIONS!r} (list of strings), {' or '.join(map(repr, schema.SINGLE_CAPTION))} (string)"
    raise ValueError(f"{where} has no column of captions: {wanted} is needed; it has {', '.join(names)}")


def captions(values: pa.Array) -> pa.ListArray:
    """Captions as list<string>: a single string becomes a list of one, a null an empty list."""
    if pa.types.is_list(values.type) or pa.types.is_large_list(values.type):
        values = values.cast(schema.REQUIRED[schema.CAPTIONS])
        return pc.if_else(pc.is_null(values), pa.scalar([], values.type), values) if values.null_count else values
    texts = values.cast(pa.string())
    if not texts.null_count:
        return pa.ListArray.from_arrays(pa.array(np.arange(len(texts) + 1, dtype=np.int32)), texts)
    present = texts.is_valid().to_numpy(zero_copy_only=False)
    offsets = np.concatenate([[0], np.cumsum(present)]).astype(np.int32)
    return pa.ListArray.from_arrays(pa.array(offsets), texts.drop_null())


def image_bytes(values: pa.Array) -> pa.Array:
    """Encoded pictures as binary; a struct of `bytes` and `path`, as the `datasets` library writes it, gives its
    bytes."""
    return (pc.struct_field(values, "bytes") if pa.types.is_struct(values.type) else values).cast(pa.binary())
