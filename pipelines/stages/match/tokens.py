"""Texts and entries as numbered tokens, for entries that begin and end at a space.

Between the space put before a text and the space put after it, `spaced(text)` is a list of tokens with single spaces
in between (some tokens are empty). An entry is such a list too, and occurs between spaces exactly where its list is a
run of the text's list.

A token of up to 8 bytes is its own key (with its length), a longer one is compared byte by byte: numbers are exact.
"""

from typing import NamedTuple

import numpy as np
from numba import types

from pipelines.stages.compiled import In, Out, jit
from pipelines.stages.hashing import mix
from pipelines.stages.match.trie import capacity

ORDINARY, SPACE, PUNCTUATION = 0, 1, 2
CLASSES = np.zeros(256, np.uint8)
"""Treatment of a byte by `spaced`: nothing, turn it into a space, or put a space on both sides."""
CLASSES[[ord(c) for c in " \t\n\r"]] = SPACE
CLASSES[[ord(c) for c in ",.;:?!`"]] = PUNCTUATION


class Vocabulary(NamedTuple):
    """The distinct tokens of the entries; every field is an array."""

    table: np.ndarray
    """uint64 [2 * capacity]: open addressing, slots (key, length << 32 | token + 1); 0 is an empty slot."""
    content: np.ndarray
    """uint8: the tokens' bytes one after another."""
    offsets: np.ndarray
    """int64 [V + 1]: where each token's bytes begin."""

    @property
    def size(self) -> int:
        return len(self.offsets) - 1


def number(data: np.ndarray, offsets: np.ndarray) -> tuple[Vocabulary, np.ndarray, np.ndarray]:
    """Cut entries `data[offsets[e] : offsets[e + 1]]` at spaces.

    Returns the vocabulary, all tokens one after another (int32), and where each entry's begin (int32 [E + 1]).
    """
    content = data[offsets[0] : offsets[-1]]
    total = int(np.count_nonzero(content == ord(" "))) + len(offsets) - 1
    table = np.zeros(2 * capacity(total), np.uint64)
    token_bytes, token_offsets = np.zeros(len(content), np.uint8), np.zeros(total + 1, np.int64)
    tokens, starts = np.empty(total, np.int32), np.empty(len(offsets), np.int32)
    size = _number(data, offsets, table, token_bytes, token_offsets, tokens, starts)
    token_offsets = token_offsets[: size + 1].copy()
    token_bytes = token_bytes[: token_offsets[-1]].copy()
    small = np.zeros(2 * capacity(size), np.uint64)  # distinct tokens are far fewer: the table that is kept is smaller
    _fill(small, token_bytes, token_offsets)
    return Vocabulary(small, token_bytes, token_offsets), tokens, starts


@jit(types.int64(types.uint64, types.uint64, types.int64, In.uint8, types.int64, In.uint64, In.uint8, In.int64))
def _find(key, hashed, length, data, begin, table, token_bytes, token_offsets):
    """Number of the token `data[begin : begin + length]`, or -1 - the empty slot where it belongs."""
    mask = np.int64(len(table) // 2 - 1)
    slot = np.int64(hashed) & mask
    while True:
        meta = np.int64(table[2 * slot + 1])
        if meta == 0:
            return -1 - slot
        if table[2 * slot] == key and meta >> 32 == length:
            token = (meta & 0xFFFFFFFF) - 1
            if length <= 8:
                return token
            at, i = token_offsets[token], 0
            while i < length and token_bytes[at + i] == data[begin + i]:
                i += 1
            if i == length:
                return token
        slot = (slot + 1) & mask


@jit(types.UniTuple(types.uint64, 2)(In.uint8, types.int64, types.int64))
def _key(data, begin, end):
    """(key, hash) of a token: the key is its bytes as a little-endian number up to 8 of them, else the hash."""
    word, h = np.uint64(0), np.uint64(0)
    for i in range(end - begin):
        if i & 7 == 0 and i > 0:
            h = mix(h ^ word)
            word = np.uint64(0)
        word |= np.uint64(data[begin + i]) << np.uint64(8 * (i & 7))
    h = mix(h ^ word ^ np.uint64(end - begin) << np.uint64(56))
    return (word if end - begin <= 8 else h), h


@jit(types.int64(In.uint8, In.int32, Out.uint64, Out.uint8, Out.int64, Out.int32, Out.int32))
def _number(data, offsets, table, token_bytes, token_offsets, tokens, starts):
    """Number the distinct tokens in order of appearance. Returns V."""
    count, at = 0, 0
    for e in range(len(offsets) - 1):
        starts[e] = at
        begin = np.int64(offsets[e])
        for i in range(offsets[e], offsets[e + 1] + 1):
            if i < offsets[e + 1] and data[i] != 32:
                continue
            key, hashed = _key(data, begin, i)
            length = i - begin
            token = _find(key, hashed, length, data, begin, table, token_bytes, token_offsets)
            if token < 0:
                slot = -1 - token
                table[2 * slot] = key
                table[2 * slot + 1] = np.uint64(length << 32 | (count + 1))
                token_offsets[count + 1] = token_offsets[count] + length
                token_bytes[token_offsets[count] : token_offsets[count + 1]] = data[begin:i]
                tokens[at] = count
                count += 1
            else:
                tokens[at] = token
            at += 1
            begin = np.int64(i + 1)
    starts[len(offsets) - 1] = at
    return count


@jit(types.void(Out.uint64, In.uint8, In.int64))
def _fill(table, token_bytes, token_offsets):
    for token in range(len(token_offsets) - 1):
        begin, end = token_offsets[token], token_offsets[token + 1]
        key, hashed = _key(token_bytes, begin, end)
        slot = -1 - _find(key, hashed, end - begin, token_bytes, begin, table, token_bytes, token_offsets)
        table[2 * slot] = key
        table[2 * slot + 1] = np.uint64((end - begin) << 32 | (token + 1))


@jit(types.int64(In.uint8, types.int64, types.int64, In.uint64, In.uint8, In.int64, Out.int32))
def tokenize(data, begin, end, table, token_bytes, token_offsets, tokens):
    """Numbers of the tokens of `spaced(data[begin:end])`, negative for those in no entry. Returns how many there are.

    One pass over the bytes: keys grow with them, and the spaced text is never written down. tokens: room for
    2 * (end - begin) + 1.
    """
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
        tokens[count] = _find(key, h, length, data, start, table, token_bytes, token_offsets)
        count += 1
        if kind == PUNCTUATION:
            key, h = np.uint64(byte), mix(np.uint64(byte) ^ np.uint64(1) << np.uint64(56))
            tokens[count] = _find(key, h, 1, data, i, table, token_bytes, token_offsets)
            count += 1
        start = i + 1
        word, h = np.uint64(0), np.uint64(0)
    return count
