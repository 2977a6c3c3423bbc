"""Arrow's columns as arrays."""

import pyarrow as pa


def whole(column: pa.ChunkedArray) -> pa.Array:
    """A column as one array. Copies it only where it has several chunks, or none: `combine_chunks` always does."""
    return column.chunk(0) if column.num_chunks == 1 else column.combine_chunks()
