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
"""Indices of draws about a row itself, below those of its texts, with which they share no bits: which rows a data card
shows, which of several duplicates stays, and which rows of a pool its weight leaves."""


@jit(types.uint64(types.uint64))
def mix(x):
    x ^= x >> np.uint64(30)
    x *= np.uint64(0xBF58476D1CE4E5B9)
    x ^= x >> np.uint64(27)
    x *= np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


@jit(types.void(In.uint8, In.int32, types.uint64, Out.uint64))
def _states(data, offsets, seed, out):
    start = mix(seed + GOLDEN)
    for i in range(len(out)):
        begin, end = offsets[i], offsets[i + 1]
        h = start
        word, filled = np.uint64(0), 0
        for j in range(begin, end):
            word |= np.uint64(data[j]) << np.uint64(8 * filled)
            filled += 1
            if filled == 8:
                h = mix(h ^ word)
                word, filled = np.uint64(0), 0
        if filled:
            h = mix(h ^ word)
        out[i] = mix(h ^ np.uint64(end - begin))


@jit(types.void(In.uint64, types.int64, Out.uint64))
def _finish(states, index, out):
    for i in range(len(out)):
        out[i] = mix(states[i] ^ (np.uint64(index) + GOLDEN))


@jit(types.void(In.uint64, In.int32, Out.uint64))
def _finish_lists(states, offsets, out):
    for i in range(len(states)):
        for j in range(offsets[i], offsets[i + 1]):
            out[j - offsets[0]] = mix(states[i] ^ (np.uint64(j - offsets[i]) + GOLDEN))


def states(strings: pa.StringArray, seed: int) -> np.ndarray:
    """Common part of the hashes of `(seed, strings[i], index)`, uint64 [N], for `finish` and `finish_lists`."""
    data, offsets = string_buffers(strings)
    out = np.empty(len(strings), np.uint64)
    _states(data, offsets, np.uint64(seed % 2**64), out)
    return out


def finish(states: np.ndarray, index: int) -> np.ndarray:
    """The hashes of those states with one index, uint64 [N]."""
    out = np.empty(len(states), np.uint64)
    _finish(np.ascontiguousarray(states), index, out)
    return out


def finish_lists(states: np.ndarray, offsets: np.ndarray) -> np.ndarray:
    """The hashes of the elements of lists, uint64 [T]: the state of their list with 0, 1, … as index.

    offsets: int32 [N + 1], where the lists begin.
    """
    out = np.empty(offsets[-1] - offsets[0], np.uint64)
    _finish_lists(states, offsets, out)
    return out


def hash64(strings: pa.StringArray, seed: int, index: int = 0) -> np.ndarray:
    """Hashes of `(seed, strings[i], index)`, uint64 [N]."""
    return finish(states(strings, seed), index)


def uniform(hashes: np.ndarray) -> np.ndarray:
    """Float64 in [0, 1) from the upper 53 bits of each hash."""
    return (hashes >> np.uint64(11)).astype(np.float64) * 2.0**-53
