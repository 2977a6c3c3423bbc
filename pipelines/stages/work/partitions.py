"""Partitions: parts of a pool that are read, matched and written one by one."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa


@dataclass(frozen=True, kw_only=True)
class Listed:
    """An image file and where its captions are."""

    image: str
    """URI; nothing where a list has addresses, which are fields."""
    captions: tuple[str | None, ...] = ()
    caption_file: str = ""
    """URI of a text file with one caption a line, or of a JSON object, instead of `captions`."""
    extras: Mapping[str, Any] = field(default_factory=dict)
    """Its further fields."""
    problem: str = ""
    """Why it cannot be read, see `rules.ROW_REASONS`."""


@dataclass(frozen=True, kw_only=True)
class Partition:
    """Rows of one file, or of a list of files."""

    index: int
    """Position in the order of the pool."""
    file: str
    """URI."""
    name: str
    """Path inside the pool; where rows bring no id, it is part of theirs."""
    size: int
    """Size that the progress bar adds up: rows, or 1 for a tar, whose rows are counted on the way."""
    start: int = 0
    """First row group (Parquet)."""
    stop: int = 0
    """One past the last."""
    first_row: int = 0
    """Rows of the file before this partition."""
    listed: tuple[Listed, ...] = ()
    """The rows themselves, where a pool is a list of files."""
    pool: str = ""
    """Name of the pool, where several are read together."""
    format: str = ""
    """Format of that pool."""
    columns: pa.Schema = field(default_factory=lambda: pa.schema([]))
    """Columns of that pool."""
    caption_column: str | None = None
    """Column of the captions, where its name says nothing."""
    folders: tuple[tuple[str, str | None], ...] = ()
    """Columns that the names of its folders are: `lang=en` gives en to all rows."""
