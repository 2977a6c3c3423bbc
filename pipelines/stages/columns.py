"""Columns of tables as arrays."""

import numpy as np
import pyarrow as pa


def whole(column: pa.ChunkedArray) -> pa.Array:
    """A column as one array. Copies it only where it has several chunks, or none: `combine_chunks` always does."""
    return column.chunk(0) if column.num_chunks == 1 else column.combine_chunks()


def set_in_lists(flags: np.ndarray, offsets: np.ndarray) -> np.ndarray:
    """Number of flags of each list that are set, int32 [N].

    flags: bool, of the lists' elements, one after another; offsets: int32 [N + 1], where the lists begin, as those of
    a slice counted from any number.
    """
    before = np.concatenate([[0], np.cumsum(flags, dtype=np.int32)])
    return np.diff(before[offsets - offsets[0]])
