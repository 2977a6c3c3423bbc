"""Columns as arrays: no copy of one chunk, one array of many."""

import pyarrow as pa

from llip.arrow import whole


def test_one_chunk_is_not_copied() -> None:
    column = pa.table({"caption": ["a", "bc", None, "d"]})["caption"]
    assert whole(column).buffers()[2].address == column.chunk(0).buffers()[2].address


def test_chunks_are_joined() -> None:
    column = pa.chunked_array([["a"], [], ["b", None]], pa.string())
    assert whole(column).equals(pa.array(["a", "b", None]))
    assert whole(column[2:]).equals(pa.array([None], pa.string()))
    assert whole(pa.chunked_array([], pa.string())).equals(pa.array([], pa.string()))
