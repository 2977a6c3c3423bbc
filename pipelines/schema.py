"""Columns that the stages agree on."""

from collections.abc import Iterable

import pyarrow as pa

ID = "id"
"""string: names a row for good; every random decision about the row is a hash of it."""
IMAGE = "image"
"""binary: one encoded image (JPEG, PNG, WebP)."""
CAPTIONS = "captions"
"""list<string>: texts that are each true of the image."""
CAPTION_TYPES = "caption_types"
"""list<string>, optional: what each caption describes; parallel to `captions` and filtered with it."""
SYNTHETIC = "synthetic_captions"
"""list<string>, optional: texts that a model wrote of the image; carried along, and drawn by the loader as often as
training asks for."""
POOL = "pool"
"""string: name of the pool that a row comes from, where several are curated together."""
KEEP_PROBABILITY = "keep_probability"
"""list<double>, parallel to `captions`: where balancing is left to the loader, how likely it keeps each of them."""
URL = "url"
"""string: where the image would have to be fetched."""
REASON = "__llip_reason"
"""string: why a row cannot be used, a name of `rules.ROW_REASONS`; null where it can. Readers offer it."""
RESERVED = "__llip_"
"""Beginning of the names that only the stages use."""
SINGLE_CAPTION = ("caption", "text")
"""Columns of one string that a pool may have instead of `captions`."""

REQUIRED: dict[str, pa.DataType] = {ID: pa.string(), IMAGE: pa.binary(), CAPTIONS: pa.list_(pa.string())}


def refuse_reserved(names: Iterable[str], where: str, *, several: bool) -> None:
    """Raise ValueError for a column of a pool that has the name of one that the stages write. several: pools are read
    together."""
    written = {KEEP_PROBABILITY, *([POOL] if several else [])}
    if taken := [name for name in names if name in written or name.startswith(RESERVED)]:
        raise ValueError(f"{where} has a column {taken[0]!r}, a name that curation writes itself; rename the column")


def with_extras(extras: Iterable[pa.Field], *, images: bool = True) -> pa.Schema:
    """The columns of curated files and shards: the required ones (of links: all but the image), then what the pool
    carries along."""
    required = [pa.field(name, kind) for name, kind in REQUIRED.items() if images or name != IMAGE]
    return pa.schema([*required, *extras])
