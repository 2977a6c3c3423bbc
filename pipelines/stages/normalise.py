"""From the columns that pools come with to the columns of `pipelines.schema`."""

import hashlib

import pyarrow as pa
import pyarrow.compute as pc

from pipelines import schema


def derived_ids(name: str, rows: range) -> pa.Array:
    """Ids of rows that bring none: a hash of the file's path inside the pool, and the row's number in the file."""
    prefix = hashlib.blake2b(name.encode(), digest_size=8).hexdigest()
    return pa.array([f"{prefix}-{row:09d}" for row in rows], pa.string())


def caption_column(names: list[str], where: str) -> str:
    """The column that holds the captions. Raises ValueError where there is none, or where it would be a guess."""
    if schema.CAPTIONS in names:
        return schema.CAPTIONS
    found = [name for name in schema.SINGLE_CAPTION if name in names]
    if len(found) == 1:
        return found[0]
    if found:
        raise ValueError(
            f"{where} has the columns {' and '.join(found)}; leave one of them, or bring a list column {schema.CAPTIONS!r}"
        )
    wanted = f"{schema.CAPTIONS!r} (list of strings), {' or '.join(map(repr, schema.SINGLE_CAPTION))} (string)"
    raise ValueError(f"{where} has no column of captions: {wanted} is needed; it has {', '.join(names)}")


def captions(values: pa.Array) -> pa.ListArray:
    """Captions as list<string>: a single string becomes a list of one, a null an empty list."""
    if pa.types.is_list(values.type) or pa.types.is_large_list(values.type):
        values = values.cast(schema.REQUIRED[schema.CAPTIONS])
        return pc.if_else(pc.is_null(values), pa.scalar([], values.type), values) if values.null_count else values
    texts = values.cast(pa.string())
    present = pc.is_valid(texts)
    offsets = pa.array([0, *pc.cumulative_sum(present.cast(pa.int32())).to_pylist()], pa.int32())
    return pa.ListArray.from_arrays(offsets, texts.drop_null())


def image_bytes(values: pa.Array) -> pa.Array:
    """Encoded pictures as binary; a struct of `bytes` and `path`, as the `datasets` library writes it, gives its bytes."""
    return (pc.struct_field(values, "bytes") if pa.types.is_struct(values.type) else values).cast(pa.binary())
