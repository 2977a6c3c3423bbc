"""Columns that the stages agree on."""

import pyarrow as pa

ID = "id"
"""string: names a row for good; every random decision about the row is a hash of it."""
IMAGE = "image"
"""binary: one encoded picture (JPEG, PNG, WebP)."""
CAPTIONS = "captions"
"""list<string>: texts that are each true of the image."""
KINDS = "kinds"
"""list<string>, optional: what each caption describes; parallel to `captions` and filtered with it."""
URL = "url"
"""string: where the picture would have to be fetched."""
SINGLE_CAPTION = ("caption", "text")
"""Columns of one string that a pool may have instead of `captions`."""

REQUIRED: dict[str, pa.DataType] = {ID: pa.string(), IMAGE: pa.binary(), CAPTIONS: pa.list_(pa.string())}


def with_extras(extras: pa.Schema) -> pa.Schema:
    """The columns of curated files and shards: the required ones, then what the pool carries along."""
    return pa.schema([pa.field(name, kind) for name, kind in REQUIRED.items()] + list(extras))
