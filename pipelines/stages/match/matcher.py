"""Metadata entries that occur in a caption (Xu et al., "Demystifying CLIP Data", arXiv 2309.16671, section 3)."""

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
from numba import types

from pipelines.stages.compiled import In, Out, jit, string_buffers
from pipelines.stages.match import characters, tokens, trie
from pipelines.stages.match.tokens import Vocabulary
from pipelines.stages.match.trie import Trie
from pipelines.stages.options import Semantics


class EntryMatcher:
    """An index of entries, built once. It is a handful of arrays: processes of a node share them in Ray's object store.

    `spaced(text)` puts a space before and after the text and on both sides of each of ``, . ; : ? ! ` ``, and turns
    each tab, newline and carriage return into one space; case, Unicode form and repeated spaces stay. An entry matches
    where `" " + entry + " "` is a substring of that; entries are taken as they are. `v2` leaves out the space on a
    side where the entry's outermost character belongs to a script written without spaces, or is ASCII or CJK
    punctuation.

    Raises ValueError for a repeated entry and for semantics other than v1 and v2.
    """

    def __init__(self, entries: Sequence[str], semantics: Semantics = "v1") -> None:
        if semantics not in ("v1", "v2"):
            raise ValueError(f"semantics is {semantics!r}; it has to be v1 or v2")
        refuse_repetition(entries, "metadata")
        self.size = len(entries)
        patterns = [characters.padded(e) if semantics == "v2" else f" {e} " for e in entries]
        closed = [i for i, p in enumerate(patterns) if len(p) == len(entries[i]) + 2]
        self._vocabulary, self._tokens = _token_index([entries[i] for i in closed], np.array(closed, np.int32))
        open_ = [i for i, p in enumerate(patterns) if len(p) < len(entries[i]) + 2]
        self._characters = _character_index([patterns[i] for i in open_], np.array(open_, np.int32))

    def __len__(self) -> int:
        return self.size

    @property
    def nbytes(self) -> int:
        """Size of the index."""
        return sum(array.nbytes for array in (*self._vocabulary, *self._tokens, *self._characters))

    def match(self, texts: pa.StringArray) -> pa.ListArray:
        """Ascending distinct ids (int32) of the entries in each text, list<int32> [T]; null for a null text."""
        data, offsets = string_buffers(texts)
        found, ends = _match(data, offsets, *self._vocabulary, *self._tokens, *self._characters)
        mask = texts.is_null() if texts.null_count else None
        return pa.ListArray.from_arrays(pa.array(ends), pa.array(found), mask=mask)


def refuse_repetition(entries: Sequence[str], where: str) -> None:
    """Raise ValueError where two entries are the same: an id would be ambiguous."""
    if len(set(entries)) == len(entries):
        return
    seen: dict[str, int] = {}
    for i, entry in enumerate(entries):
        if (first := seen.setdefault(entry, i)) != i:
            raise ValueError(f"{where}: entry {i} repeats entry {first}: {entry!r}; entries have to be distinct")


def _token_index(entries: list[str], ids: np.ndarray) -> tuple[Vocabulary, Trie]:
    vocabulary, symbols, starts = tokens.number(*string_buffers(pa.array(entries, pa.string())))
    return vocabulary, trie.build(symbols, starts, ids, vocabulary.size)


def _character_index(patterns: list[str], ids: np.ndarray) -> Trie:
    if not patterns:
        return Trie(np.zeros(0, np.uint64), np.zeros(0, np.uint64), np.zeros(0, np.int32))
    symbols = np.frombuffer("".join(patterns).encode("utf-32-le"), np.int32)
    starts = np.concatenate([[0], np.cumsum([len(p) for p in patterns])]).astype(np.int32)
    return trie.build(symbols, starts, ids, characters.ALPHABET)


_Trie = (In.uint64, In.uint64, In.int32)
_Vocabulary = (In.uint64, In.uint8, In.int64)


@jit(types.Tuple((Out.int32, Out.int32))(In.uint8, In.int32, *_Vocabulary, *_Trie, *_Trie))
def _match(data, offsets, table, token_bytes, token_offsets, edges, bloom, nodes, char_edges, char_bloom, char_nodes):
    """Ids of the entries found, text after text, and where each text's begin (int32 [T + 1])."""
    longest = 0
    for t in range(len(offsets) - 1):
        longest = max(longest, offsets[t + 1] - offsets[t])
    symbols = np.empty(3 * longest + 2, np.int32)
    found, ends = np.empty(8 * len(offsets) + 16, np.int32), np.zeros(len(offsets), np.int32)
    at = 0
    for t in range(len(offsets) - 1):
        begin, end, first = np.int64(offsets[t]), np.int64(offsets[t + 1]), at
        count = tokens.tokenize(data, begin, end, table, token_bytes, token_offsets, symbols)
        found, at = trie.walk(symbols, count, edges, bloom, nodes, found, at)
        if len(char_nodes):
            count = characters.spaced_points(data, begin, end, symbols)
            found, at = trie.walk(symbols, count, char_edges, char_bloom, char_nodes, found, at)
        at = trie.sort_distinct(found, first, at)
        ends[t + 1] = at
    return found[:at].copy(), ends
