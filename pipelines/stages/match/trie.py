"""A trie over numbered symbols in one flat hash table, and the walk that finds every entry in a sequence of symbols.

Edges are keyed by the exact pair (node, symbol): a collision of hashes costs a probe and never a wrong match.
"""

from typing import NamedTuple

import numpy as np
from numba import types

from pipelines.stages.compiled import In, Out, jit
from pipelines.stages.hashing import mix


class Trie(NamedTuple):
    """Every field is an array, so that the processes of a node share one copy through Ray's object store."""

    edges: np.ndarray
    """uint64 [2 * capacity]: open addressing, slots (node << 32 | symbol, child); child 0 is an empty slot."""
    bloom: np.ndarray
    """uint64, a set of bits by the edges' hashes, small enough for a processor's cache: most neighbours are no edge."""
    nodes: np.ndarray
    """int32 [nodes]: (entry + 1) << 1 | has children. Node s is symbol s at the start; longer paths come after
    those."""


def capacity(count: int) -> int:
    """Slots of a table for `count` keys: a power of two, at most two thirds full."""
    return 1 << max(4, (3 * count // 2).bit_length())


def build(symbols: np.ndarray, starts: np.ndarray, ids: np.ndarray, alphabet: int) -> Trie:
    """The trie of the distinct, non-empty sequences `symbols[starts[e] : starts[e + 1]]`, reported as `ids[e]`.

    symbols: int32 in [0, alphabet); starts: int32 [E + 1]; ids: int32 [E].
    """
    longer = len(symbols) - len(ids)
    edges = np.zeros(2 * capacity(longer), np.uint64)
    bloom = np.zeros(capacity(longer) // 8, np.uint64)  # 8 bits an edge or more
    nodes = np.zeros(alphabet + longer, np.int32)
    count = _grow(symbols, starts, ids, alphabet, edges, bloom, nodes)
    return Trie(edges, bloom, nodes[:count].copy())


@jit(types.uint64(types.int64, types.int32))
def _edge_key(node, symbol):
    return np.uint64(node) << np.uint64(32) | np.uint64(symbol)


@jit(types.int64(types.uint64, types.uint64, In.uint64))
def _find_edge(key, hashed, edges):
    """Slot that holds the edge, or -1 - the empty slot where it belongs."""
    mask = np.int64(len(edges) // 2 - 1)
    slot = np.int64(hashed) & mask
    while edges[2 * slot + 1] != 0:
        if edges[2 * slot] == key:
            return slot
        slot = (slot + 1) & mask
    return -1 - slot


@jit(types.int64(In.int32, In.int32, In.int32, types.int64, Out.uint64, Out.uint64, Out.int32))
def _grow(symbols, starts, ids, alphabet, edges, bloom, nodes):
    """Add a path for every entry. Returns the number of nodes."""
    count = alphabet
    bloom_mask = np.uint64(len(bloom) * 64 - 1)
    for e in range(len(starts) - 1):
        node = np.int64(symbols[starts[e]])
        for i in range(starts[e] + 1, starts[e + 1]):
            key = _edge_key(node, symbols[i])
            hashed = mix(key)
            slot = _find_edge(key, hashed, edges)
            if slot < 0:
                slot = -1 - slot
                edges[2 * slot], edges[2 * slot + 1] = key, np.uint64(count)
                bit = (hashed >> np.uint64(32)) & bloom_mask
                bloom[bit >> np.uint64(6)] |= np.uint64(1) << (bit & np.uint64(63))
                nodes[node] |= 1
                count += 1
            node = np.int64(edges[2 * slot + 1])
        nodes[node] |= (ids[e] + 1) << 1
    return count


@jit(
    types.Tuple((Out.int32, types.int64))(In.int32, types.int64, In.uint64, In.uint64, In.int32, Out.int32, types.int64)
)
def walk(symbols, count, edges, bloom, nodes, found, at):
    """Append the entries that begin at any of the first `count` symbols (negative: in no entry) to `found[:at]`.

    Returns `found`, moved to a larger array where it was full, and the new `at`.
    """
    bloom_mask = np.uint64(len(bloom) * 64 - 1)
    for i in range(count):
        if symbols[i] < 0:
            continue
        node, j = np.int64(symbols[i]), i + 1
        while True:
            value = nodes[node]
            if value > 1:
                if at == len(found):
                    larger = np.empty(2 * at, np.int32)
                    larger[:at] = found
                    found = larger
                found[at] = (value >> 1) - 1
                at += 1
            if value & 1 == 0 or j == count or symbols[j] < 0:
                break
            key = _edge_key(node, symbols[j])
            hashed = mix(key)
            bit = (hashed >> np.uint64(32)) & bloom_mask
            if bloom[bit >> np.uint64(6)] >> (bit & np.uint64(63)) & np.uint64(1) == 0:
                break
            slot = _find_edge(key, hashed, edges)
            if slot < 0:
                break
            node = np.int64(edges[2 * slot + 1])
            j += 1
    return found, at


@jit(types.int64(Out.int32, types.int64, types.int64))
def sort_distinct(values, begin, end):
    """Sort `values[begin:end]` and drop repetitions. Returns the new end."""
    gap = 1
    while gap < (end - begin) // 9:
        gap = 3 * gap + 1
    while gap > 0:  # Shell's sort: plain insertion for the usual handful, and no quadratic time for a text of a million
        for i in range(begin + gap, end):
            value, j = values[i], i
            while j >= begin + gap and values[j - gap] > value:
                values[j] = values[j - gap]
                j -= gap
            values[j] = value
        gap //= 3
    kept = begin
    for i in range(begin, end):
        if kept == begin or values[i] != values[kept - 1]:
            values[kept] = values[i]
            kept += 1
    return kept
