"""A unit of work: part of one file of a pool."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Unit:
    """Rows that are read, matched and written together."""

    index: int
    """Position in the order of the pool."""
    file: str
    """URI."""
    name: str
    """Path inside the pool; where rows bring no id, it is part of theirs."""
    start: int
    """First row group (Parquet), first row (list, folder); 0 for a tar."""
    stop: int
    """One past the last."""
    first_row: int
    """Rows of the file before this unit."""
    rows: int
    """How many rows (members of a tar) the unit has."""
