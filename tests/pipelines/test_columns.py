"""Columns as arrays: no copy of one chunk, one array of many, flags counted by lists."""

import numpy as np
import pyarrow as pa

from pipelines.stages.columns import set_in_lists, whole
from pipelines.stages.match import matching


def test_one_chunk_is_not_copied() -> None:
    column = pa.table({"caption": ["a", "bc", None, "d"]})["caption"]
    assert whole(column).buffers()[2].address == column.chunk(0).buffers()[2].address


def test_chunks_are_joined() -> None:
    column = pa.chunked_array([["a"], [], ["b", None]], pa.string())
    assert whole(column).equals(pa.array(["a", "b", None]))
    assert whole(column[2:]).equals(pa.array([None], pa.string()))
    assert whole(pa.chunked_array([], pa.string())).equals(pa.array([], pa.string()))


def test_flags_are_counted_by_lists() -> None:
    flags = np.array([1, 0, 1, 1, 0], bool)
    assert set_in_lists(flags, np.array([0, 2, 2, 5], np.int32)).tolist() == [1, 0, 2]
    assert set_in_lists(flags[2:], np.array([2, 2, 5], np.int32)).tolist() == [0, 2]


def test_a_slice_of_matches_is_judged_by_its_own_rows() -> None:
    reasons = [[0, 6], [6], [], [6, 0], [0]]
    matches = [[[1]] * len(row) for row in reasons]
    table = pa.table([pa.array([0] * 5, pa.uint8()), reasons, matches], schema=matching.SCHEMA)
    assert matching.is_left(table).tolist() == [True, False, False, True, True]
    assert matching.is_left(table.slice(1, 3)).tolist() == [False, False, True]
