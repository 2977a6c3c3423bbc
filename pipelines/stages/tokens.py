"""Matching of entries that begin and end at a space: a trie of tokens in two flat hash tables.

Between the space put before a text and the space put after it, `spaced(text)` is a list of tokens with single spaces in between (some tokens are
empty). An entry is such a list too, and occurs between spaces exactly where its list is a run of the text's list. So a text is cut into
tokens, each token becomes a number, and the trie is walked from every token.

Exactness: a token of up to 8 bytes is its own key (with its length), a longer one is compared byte by byte; an edge of the trie is keyed by
the exact pair (node, token). A collision of hashes costs a probe and never a wrong match.
"""

from typing import NamedTuple

import numpy as np
from numba import types

from pipelines.stages.compiled import In, Out, jit
from pipelines.stages.hashing import mix

ORDINARY, SPACE, PUNCTUATION = 0, 1, 2

CLASSES = np.zeros(256, np.uint8)
CLASSES[[ord(c) for c in " \t\n\r"]] = SPACE
CLASSES[[ord(c) for c in ",.;:?!`"]] = PUNCTUATION


class TokenTrie(NamedTuple):
    """Index of the entries; every field is an array, so that processes of a node share one copy through the object store."""

    vocabulary: np.ndarray
    """uint64 [2 * capacity]: open addressing, slots (key, length << 32 | token + 1); 0 is an empty slot."""
    token_bytes: np.ndarray
    token_offsets: np.ndarray
    """int64 [V + 1] into token_bytes."""
    edges: np.ndarray
    """uint64 [2 * capacity]: open addressing, slots (node << 32 | token, child); child 0 is an empty slot (a child is never token 0)."""
    bloom: np.ndarray
    """uint64 bit set of the edges' hashes, small enough for the processor's cache: most pairs of neighbours are no edge."""
    nodes: np.ndarray
    """int32 [nodes]: (entry + 1) << 1 | has children. Nodes 0 … V - 1 are the tokens themselves."""


@jit(types.uint64(types.uint64, types.uint64))
def _edge_key(node, token):
    return node << np.uint64(32) | token


@jit(types.int64(types.uint64, types.uint64, types.int64, In.uint8, types.int64, In.uint64, In.uint8, In.int64))
def _find_token(key, hashed, length, data, begin, vocabulary, token_bytes, token_offsets):
    """Number of the token `data[begin : begin + length]`, or -1 - the empty slot where it belongs."""
    mask = np.int64(len(vocabulary) // 2 - 1)
    slot = np.int64(hashed) & mask
    while True:
        meta = np.int64(vocabulary[2 * slot + 1])
        if meta == 0:
            return -1 - slot
        if vocabulary[2 * slot] == key and meta >> 32 == length:
            token = (meta & 0xFFFFFFFF) - 1
            if length <= 8:
                return token
            at, i = token_offsets[token], 0
            while i < length and token_bytes[at + i] == data[begin + i]:
                i += 1
            if i == length:
                return token
        slot = (slot + 1) & mask


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


@jit(types.UniTuple(types.uint64, 2)(In.uint8, types.int64, types.int64))
def _token_key(data, begin, end):
    """(key, hash) of a token: its bytes as a little-endian number up to 8 of them, else its hash."""
    word, h = np.uint64(0), np.uint64(0)
    for i in range(end - begin):
        if i & 7 == 0 and i > 0:
            h = mix(h ^ word)
            word = np.uint64(0)
        word |= np.uint64(data[begin + i]) << np.uint64(8 * (i & 7))
    h = mix(h ^ word ^ np.uint64(end - begin) << np.uint64(56))
    return (word if end - begin <= 8 else h), h


@jit(types.int64(In.uint8, In.int32, Out.uint64, Out.uint8, Out.int64, Out.int32, Out.int32))
def _number_tokens(data, offsets, vocabulary, token_bytes, token_offsets, tokens, starts):
    """Cut the entries at spaces and number the distinct tokens in order of appearance. Returns V."""
    count, at = 0, 0
    for e in range(len(offsets) - 1):
        starts[e] = at
        begin = np.int64(offsets[e])
        for i in range(offsets[e], offsets[e + 1] + 1):
            if i < offsets[e + 1] and data[i] != 32:
                continue
            key, hashed = _token_key(data, begin, i)
            length = i - begin
            token = _find_token(key, hashed, length, data, begin, vocabulary, token_bytes, token_offsets)
            if token < 0:
                slot = -1 - token
                vocabulary[2 * slot] = key
                vocabulary[2 * slot + 1] = np.uint64(length << 32 | (count + 1))
                for j in range(length):
                    token_bytes[token_offsets[count] + j] = data[begin + j]
                token_offsets[count + 1] = token_offsets[count] + length
                token = count
                count += 1
            tokens[at] = token
            at += 1
            begin = i + 1
    starts[len(offsets) - 1] = at
    return count


@jit(types.void(Out.uint64, In.uint8, In.int64))
def _fill_vocabulary(vocabulary, token_bytes, token_offsets):
    for token in range(len(token_offsets) - 1):
        begin, end = token_offsets[token], token_offsets[token + 1]
        key, hashed = _token_key(token_bytes, begin, end)
        slot = -1 - _find_token(key, hashed, end - begin, token_bytes, begin, vocabulary, token_bytes, token_offsets)
        vocabulary[2 * slot] = key
        vocabulary[2 * slot + 1] = np.uint64((end - begin) << 32 | (token + 1))


@jit(types.int64(In.int32, In.int32, In.int32, types.int64, Out.uint64, Out.uint64, Out.int32))
def _grow_trie(tokens, starts, ids, vocabulary_size, edges, bloom, nodes):
    """Add a path for every entry. Returns the number of nodes, or -1 - the position of an entry that repeats an earlier one."""
    count = vocabulary_size
    bloom_mask = np.uint64(len(bloom) * 64 - 1)
    for e in range(len(starts) - 1):
        node = np.int64(tokens[starts[e]])
        for i in range(starts[e] + 1, starts[e + 1]):
            key = _edge_key(np.uint64(node), np.uint64(tokens[i]))
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
        if nodes[node] >> 1 != 0:
            return -1 - e
        nodes[node] |= (ids[e] + 1) << 1
    return count


def _capacity(count: int) -> int:
    """Slots of a table for `count` keys: a power of two, at most half full."""
    return 1 << max(4, (2 * count - 1).bit_length())


def build(data: np.ndarray, offsets: np.ndarray, ids: np.ndarray) -> TokenTrie:
    """The trie of the entries `data[offsets[e] : offsets[e + 1]]`, which are reported as `ids[e]`. They have to be distinct."""
    content = data[offsets[0] : offsets[-1]]
    upper = int(np.count_nonzero(content == ord(" "))) + len(offsets) - 1
    scratch = np.zeros(2 * _capacity(upper), np.uint64)
    token_bytes, token_offsets = np.zeros(len(content), np.uint8), np.zeros(upper + 1, np.int64)
    tokens, starts = np.empty(upper, np.int32), np.empty(len(offsets), np.int32)
    size = _number_tokens(data, offsets, scratch, token_bytes, token_offsets, tokens, starts)
    token_offsets = token_offsets[: size + 1].copy()
    token_bytes = token_bytes[: token_offsets[-1]].copy()
    vocabulary = np.zeros(2 * _capacity(size), np.uint64)
    _fill_vocabulary(vocabulary, token_bytes, token_offsets)
    pairs = upper - (len(offsets) - 1)
    edges = np.zeros(2 * _capacity(pairs), np.uint64)
    bloom = np.zeros(max(1, _capacity(8 * pairs) // 128), np.uint64)
    nodes = np.zeros(size + pairs, np.int32)
    count = _grow_trie(tokens, starts, ids.astype(np.int32), size, edges, bloom, nodes)
    assert count >= 0, "entries are distinct"
    return TokenTrie(vocabulary, token_bytes, token_offsets, edges, bloom, nodes[:count].copy())


@jit(types.int64(In.uint8, types.int64, types.int64, In.uint64, In.uint8, In.int64, Out.int32))
def _tokenize(data, begin, end, vocabulary, token_bytes, token_offsets, tokens):
    """Numbers of the tokens of `spaced(data[begin:end])`, -1 for those that occur in no entry. Returns how many there are."""
    count = 0
    start = begin
    word, h = np.uint64(0), np.uint64(0)
    for i in range(begin, end + 1):
        byte = data[i] if i < end else np.uint8(32)
        kind = CLASSES[byte]
        if kind == ORDINARY:
            filled = (i - start) & 7
            if filled == 0 and i > start:
                h = mix(h ^ word)
                word = np.uint64(0)
            word |= np.uint64(byte) << np.uint64(8 * filled)
            continue
        length = i - start
        h = mix(h ^ word ^ np.uint64(length) << np.uint64(56))
        key = word if length <= 8 else h
        tokens[count] = _find_token(key, h, length, data, start, vocabulary, token_bytes, token_offsets)
        count += 1
        if kind == PUNCTUATION:
            key, h = np.uint64(byte), mix(np.uint64(byte) ^ np.uint64(1) << np.uint64(56))
            tokens[count] = _find_token(key, h, 1, data, i, vocabulary, token_bytes, token_offsets)
            count += 1
        start = i + 1
        word, h = np.uint64(0), np.uint64(0)
    return count


@jit(types.int64(Out.int32, types.int64, types.int64))
def sort_distinct(values, begin, end):
    """Sort `values[begin:end]` and drop repetitions. Returns the new end."""
    if end - begin > 64:
        values[begin:end] = np.sort(values[begin:end])
    else:
        for i in range(begin + 1, end):
            value, j = values[i], i
            while j > begin and values[j - 1] > value:
                values[j] = values[j - 1]
                j -= 1
            values[j] = value
    kept = begin
    for i in range(begin, end):
        if kept == begin or values[i] != values[kept - 1]:
            values[kept] = values[i]
            kept += 1
    return kept


@jit(
    types.Tuple((Out.int32, Out.int64))(
        In.uint8, In.int32, In.uint64, In.uint8, In.int64, In.uint64, In.uint64, In.int32
    )
)
def _match(data, offsets, vocabulary, token_bytes, token_offsets, edges, bloom, nodes):
    longest = 0
    for t in range(len(offsets) - 1):
        longest = max(longest, offsets[t + 1] - offsets[t])
    tokens = np.empty(2 * longest + 1, np.int32)
    found, ends = np.empty(max(16, 8 * len(offsets)), np.int32), np.zeros(len(offsets), np.int64)
    at = 0
    bloom_mask = np.uint64(len(bloom) * 64 - 1)
    for t in range(len(offsets) - 1):
        count = _tokenize(
            data, np.int64(offsets[t]), np.int64(offsets[t + 1]), vocabulary, token_bytes, token_offsets, tokens
        )
        begin = at
        for i in range(count):
            if tokens[i] < 0:
                continue
            node, j = np.int64(tokens[i]), i + 1
            while True:
                value = nodes[node]
                if value > 1:
                    if at == len(found):
                        larger = np.empty(2 * at, np.int32)
                        larger[:at] = found
                        found = larger
                    found[at] = (value >> 1) - 1
                    at += 1
                if value & 1 == 0 or j == count or tokens[j] < 0:
                    break
                key = _edge_key(np.uint64(node), np.uint64(tokens[j]))
                hashed = mix(key)
                bit = (hashed >> np.uint64(32)) & bloom_mask
                if bloom[bit >> np.uint64(6)] >> (bit & np.uint64(63)) & np.uint64(1) == 0:
                    break
                slot = _find_edge(key, hashed, edges)
                if slot < 0:
                    break
                node = np.int64(edges[2 * slot + 1])
                j += 1
        at = sort_distinct(found, begin, at)
        ends[t + 1] = at
    return found[:at].copy(), ends


def match(data: np.ndarray, offsets: np.ndarray, trie: TokenTrie) -> tuple[np.ndarray, np.ndarray]:
    """Entries found in each text `data[offsets[t] : offsets[t + 1]]`: ids int32, ascending and distinct in a text, and where each text's begin (int64 [T + 1])."""
    return _match(data, offsets, *trie)
