"""Units of work: parts of a pool that are read, matched and written one by one."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Listed:
    """An image file and where its captions are."""

    image: str
    """URI."""
    captions: tuple[str, ...] = ()
    caption_file: str = ""
    """URI of a text file with one caption a line, instead of `captions`."""


@dataclass(frozen=True, kw_only=True)
class Unit:
    """Rows of one file, or of a list of files."""

    index: int
    """Position in the order of the pool."""
    file: str
    """URI."""
    name: str
    """Path inside the pool; where rows bring no id, it is part of theirs."""
    size: int
    """What the progress bar adds up: rows, or 1 for a tar, whose rows are counted on the way."""
    start: int = 0
    """First row group (Parquet)."""
    stop: int = 0
    """One past the last."""
    first_row: int = 0
    """Rows of the file before this unit."""
    listed: tuple[Listed, ...] = ()
    """The rows themselves, where a pool is a list of files."""
    pool: str = ""
    """Name of the pool, where several are read together."""
    format: str = ""
    """Format of that pool."""
