"""A 64-bit hash of (seed, string, index), the source of every random decision about a row: the same whatever the
partitioning.

    mix(x):   x ^= x >> 30;  x *= 0xBF58476D1CE4E5B9;  x ^= x >> 27;  x *= 0x94D049BB133111EB;  x ^= x >> 31

    hash:     h = mix(seed + 0x9E3779B97F4A7C15)
              h = mix(h ^ w) for each 8-byte little-endian word w of the UTF-8 bytes, the last one padded with zeros
              h = mix(h ^ length in bytes);  h = mix(h ^ (index + 0x9E3779B97F4A7C15))

All modulo 2^64. `mix` is the finaliser of SplitMix64 (Steele, Lea, Flood, OOPSLA 2014), a bijection in which every
input bit flips about half of the output bits.
"""

import numpy as np
import pyarrow as pa
from numba import types

from pipelines.stages.compiled import In, Out, jit, string_buffers

GOLDEN = np.uint64(0x9E3779B97F4A7C15)
SAMPLE, RANK, MIX = -1, -2, -3
"""Indices, where none counts a row's texts, of draws about the row itself: which rows a data card shows, which of
several duplicates stays, and which rows of a pool its weight leaves. A text's draw shares no bits with them."""


@jit(types.uint64(types.uint64))
def mix(x):
    x ^= x >> np.uint64(30)
    x *= np.uint64(0xBF58476D1CE4E5B9)
    x ^= x >> np.uint64(27)
    x *= np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


@jit(types.void(In.uint8, In.int32, In.int32, In.int64, types.uint64, Out.uint64))
def _hash(data, offsets, rows, indices, seed, out):
    start_state = mix(seed + GOLDEN)
    for i in range(len(rows)):
        begin, end = offsets[rows[i]], offsets[rows[i] + 1]
        h = start_state
        word, filled = np.uint64(0), 0
        for j in range(begin, end):
            word |= np.uint64(data[j]) << np.uint64(8 * filled)
            filled += 1
            if filled == 8:
                h = mix(h ^ word)
                word, filled = np.uint64(0), 0
        if filled:
            h = mix(h ^ word)
        h = mix(h ^ np.uint64(end - begin))
        out[i] = mix(h ^ (np.uint64(indices[i]) + GOLDEN))


def hash64(
    strings: pa.StringArray, seed: int, rows: np.ndarray | None = None, indices: np.ndarray | None = None
) -> np.ndarray:
    """Hashes of `(seed, strings[rows[i]], indices[i])` as uint64 [N]; of `(seed, strings[i], 0)` where no rows are
    given."""
    data, offsets = string_buffers(strings)
    if rows is None:
        rows = np.arange(len(strings), dtype=np.int32)
    if indices is None:
        indices = np.zeros(len(rows), dtype=np.int64)
    out = np.empty(len(rows), dtype=np.uint64)
    _hash(
        data,
        offsets,
        np.ascontiguousarray(rows, np.int32),
        np.ascontiguousarray(indices, np.int64),
        np.uint64(seed % 2**64),
        out,
    )
    return out


def uniform(hashes: np.ndarray) -> np.ndarray:
    """Float64 in [0, 1) from the upper 53 bits of each hash."""
    return (hashes >> np.uint64(11)).astype(np.float64) * 2.0**-53
