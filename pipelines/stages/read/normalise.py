"""From the columns that pools come with to the columns of `pipelines.schema`."""

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from llip import storage
from llip.data import text_files
from pipelines import schema
from pipelines.stages.read import fields
from pipelines.stages.work import concurrently

BATCH_ROWS = 256
"""Rows of a table that passes from reading to matching and writing: encoded images of so many fit in memory."""
IMAGE_BYTES = 1 << 27
"""Most bytes of an encoded image that is read: a sparse member of a tar, or a file, may claim to be of any size."""
TEXT_BYTES = 1 << 24
"""Most bytes of an image's text or JSON."""
UNREAD = f"{schema.RESERVED}unread"
"""Column of rows that were read one by one: what was left out of each, by kind (Counter)."""
TOO_LARGE, OTHER_TYPE = "file is too large", "field of another type"
"""Reasons, see `rules.ROW_REASONS`."""


def prefix(name: str) -> str:
    """Beginning of the ids of a file whose rows bring none: a hash of its path inside the pool."""
    return hashlib.blake2b(name.encode("utf-8", "surrogateescape"), digest_size=8).hexdigest()


def derived_ids(name: str, rows: range) -> pa.Array:
    """Ids of rows that bring none: the file's prefix, and the row's number in the file."""
    start = prefix(name)
    return pa.array([f"{start}-{row:09d}" for row in rows], pa.string())


def table(
    rows: Sequence[dict[str, Any]],
    extras: Sequence[Mapping[str, Any]],
    kinds: pa.Schema,
    columns: Sequence[str],
    unread: Counter[str],
) -> pa.Table:
    """These columns of rows that were read one by one. extras: their further fields; kinds: the pool's columns.

    A row gets a reason where one of its fields has another type than the column, and keeps one that it brings.
    """
    found: dict[str, pa.Array] = {}
    reasons = [row[schema.REASON] for row in rows]
    for name in columns:
        if name in schema.REQUIRED:
            found[name] = pa.array([row[name] for row in rows], schema.REQUIRED[name])
        elif name in rows[0]:
            found[name] = pa.array([row[name] for row in rows], pa.string())
        else:
            found[name], others = fields.array([values.get(name) for values in extras], kinds.field(name).type)
            for place in others:
                reasons[place] = reasons[place] or OTHER_TYPE
    if schema.REASON in columns:
        found[schema.REASON] = pa.array(reasons, pa.string())
    for row in rows:
        unread.update(row[UNREAD])
    return pa.table(found)


def image_file(uri: str) -> tuple[bytes | None, str]:
    """The bytes of an image's file, None where it cannot be read, and the reason where its size is the reason.

    Failures that may pass are raised, so that no row is lost to a storage that does not answer now.
    """
    try:
        return storage.read_bytes(uri, most=IMAGE_BYTES), ""
    except storage.TooLargeError:
        return None, TOO_LARGE
    except (OSError, ValueError, ImportError) as error:
        if storage.is_transient(error):
            raise
        return None, ""


def is_text(value: Any) -> bool:
    """Whether a value is a text that can be written."""
    return isinstance(value, str) and text_files.is_unicode(value)


def captions_of(record: dict[str, Any], source: str | None) -> list[str | None]:
    """Captions of a row that was read from JSON or a list: a text or a list of texts; null in place of what is none.

    source: the field; None: `captions`, `caption`, `text` or MetaCLIP's `texts`, whose texts follow their kind.
    """
    known = (schema.CAPTIONS, *schema.SINGLE_CAPTION, "texts")
    value = record.get(source) if source else next((record[name] for name in known if name in record), None)
    values = value if isinstance(value, list) else [] if value is None else [value]
    return [text if is_text(text) else None for text in map(_of_pair, values)]


def _of_pair(value: Any) -> Any:
    """The text of [kind, text, …]."""
    if isinstance(value, list) and value:
        return value[1] if len(value) > 1 and isinstance(value[1], str) else value[0]
    return value


def caption_column(
    names: Sequence[str],
    where: str,
    given: str | None = None,
    known: Sequence[str] = (schema.CAPTIONS, *schema.SINGLE_CAPTION),
) -> str:
    """The column that holds the captions. Raises ValueError where there is none, or where it would be a guess."""
    if given is not None:
        if given not in names:
            raise ValueError(f"{where} has no column {given!r} (--caption-column); it has {', '.join(names)}")
        return given
    if schema.CAPTIONS in names:
        return schema.CAPTIONS
    found = [name for name in schema.SINGLE_CAPTION if name in names] or [n for n in known if n in names][:1]
    if len(found) == 1:
        return found[0]
    if found:
        raise ValueError(
            f"{where} has the columns {' and '.join(found)}; leave one, bring a list column {schema.CAPTIONS!r}, or say"
            " which with --caption-column"
        )
    wanted = f"{schema.CAPTIONS!r} (list of strings), {' or '.join(map(repr, schema.SINGLE_CAPTION))} (string)"
    raise ValueError(
        f"{where} has no column of captions: {wanted} is needed, or --caption-column; it has {', '.join(names)}"
    )


def captions(values: pa.Array) -> pa.ListArray:
    """Captions as list<string>: a single string becomes a list of one, a null an empty list; a text that is no UTF-8 is
    null."""
    values = plain(values)
    if pa.types.is_list(values.type):
        lists = values
        if lists.null_count:
            lists = pc.if_else(pc.is_null(lists), pa.scalar([], lists.type), lists)
        offsets, texts = lists.offsets, lists.values
        if len(offsets) and (offsets[0].as_py() or len(texts) != offsets[-1].as_py()):
            texts = lists.flatten()
            offsets = pc.subtract(offsets, offsets[0])
        return pa.ListArray.from_arrays(offsets, unicode(texts.cast(pa.string())))
    texts = unicode(values.cast(pa.string()))
    if not texts.null_count:
        return pa.ListArray.from_arrays(pa.array(np.arange(len(texts) + 1, dtype=np.int32)), texts)
    present = texts.is_valid().to_numpy(zero_copy_only=False)
    offsets = np.concatenate([[0], np.cumsum(present)]).astype(np.int32)
    return pa.ListArray.from_arrays(pa.array(offsets), texts.drop_null())


def unicode(texts: pa.StringArray, *, replace: bool = False) -> pa.StringArray:
    """Texts, with null (or, to `replace`, U+FFFD for each wrong byte) in place of those that are no UTF-8, which no
    writer of Parquet checks."""
    content = texts.cast(pa.binary())
    try:
        return content.cast(pa.string())
    except pa.ArrowInvalid:
        return pa.array([_decoded(value, replace) for value in content.to_pylist()], pa.string())


def _decoded(value: bytes | None, replace: bool) -> str | None:
    try:
        return None if value is None else value.decode()
    except UnicodeDecodeError:
        return value.decode("utf-8", "replace") if replace and value is not None else None


def unicode_inside(values: pa.Array) -> pa.Array:
    """Values of any type, with U+FFFD for each wrong byte of the texts in their lists and structs."""
    if not pa.types.is_nested(values.type):
        return unicode(values, replace=True) if pa.types.is_string(values.type) else values
    try:
        values.validate(full=True)
    except pa.ArrowInvalid:
        raw = values.cast(_bytes_for_texts(values.type)).to_pylist()
        return pa.array(_decoded_inside(raw), values.type)
    return values


def _bytes_for_texts(kind: pa.DataType) -> pa.DataType:
    if pa.types.is_list(kind):
        return pa.list_(_bytes_for_texts(kind.value_type))
    if pa.types.is_struct(kind):
        return pa.struct([pa.field(f.name, _bytes_for_texts(f.type)) for f in kind])
    return pa.binary() if pa.types.is_string(kind) else kind


def _decoded_inside(value: Any) -> Any:
    if isinstance(value, list):
        return [_decoded_inside(item) for item in value]
    if isinstance(value, dict):
        return {name: _decoded_inside(item) for name, item in value.items()}
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else value


def plain_type(kind: pa.DataType) -> pa.DataType:
    """A type without what only says how values are stored: dictionaries, views, large offsets, fixed sizes of lists."""
    if pa.types.is_dictionary(kind):
        return plain_type(kind.value_type)
    if pa.types.is_large_string(kind) or pa.types.is_string_view(kind):
        return pa.string()
    if pa.types.is_large_binary(kind) or pa.types.is_binary_view(kind) or pa.types.is_fixed_size_binary(kind):
        return pa.binary()
    if is_list(kind):
        return pa.list_(plain_type(kind.value_type))
    if pa.types.is_struct(kind):
        return pa.struct([pa.field(f.name, plain_type(f.type)) for f in kind])
    return kind


def is_list(kind: pa.DataType) -> bool:
    is_kind = (
        pa.types.is_list,
        pa.types.is_large_list,
        pa.types.is_fixed_size_list,
        pa.types.is_list_view,
        pa.types.is_large_list_view,
    )
    return any(test(kind) for test in is_kind)


def plain(values: pa.Array) -> pa.Array:
    """Values of their plain type."""
    kind = plain_type(values.type)
    if values.type == kind:
        return values
    try:
        return values.cast(kind)
    except pa.ArrowNotImplementedError:  # lists of dictionaries, for instance
        return pa.array(values.to_pylist(), kind)


def image_bytes(values: pa.Array, folder: str) -> tuple[pa.Array, dict[int, str]]:
    """Encoded images as binary, and reasons by row; of a struct of `bytes` and `path`, as the `datasets` library
    writes it, its bytes or else the file, beside the others in `folder`."""
    if not pa.types.is_struct(values.type):
        return plain(values).cast(pa.binary()), {}
    names = [field.name for field in values.type]
    data = pc.struct_field(values, "bytes") if "bytes" in names else pa.nulls(len(values), pa.binary())
    data = plain(data).cast(pa.binary())
    if not data.null_count or "path" not in names:
        return data, {}
    paths = plain(pc.struct_field(values, "path")).cast(pa.string())
    rows = np.flatnonzero(pc.and_(data.is_null(), paths.is_valid()).to_numpy(zero_copy_only=False))
    places = [
        path if path.startswith("/") or "://" in path else storage.join(folder, path)
        for path in paths.take(pa.array(rows)).to_pylist()
    ]
    files = concurrently(image_file, places)
    found = data.to_pylist()
    for row, (content, _) in zip(rows, files, strict=True):
        found[row] = content
    reasons = {int(row): reason for row, (_, reason) in zip(rows, files, strict=True) if reason}
    return pa.array(found, pa.binary()), reasons
