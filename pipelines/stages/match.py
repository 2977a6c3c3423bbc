"""Which metadata entries occur in a caption (Xu et al., "Demystifying CLIP Data", arXiv 2309.16671, section 3)."""

from collections.abc import Sequence
from typing import Literal

import numpy as np
import pyarrow as pa

from pipelines.stages import tokens
from pipelines.stages.compiled import string_buffers

Semantics = Literal["v1", "v2"]


class EntryMatcher:
    """An index of entries, built once; pickled, it is a handful of arrays that processes of a node share through Ray's object store.

    `spaced(text)` puts a space before and after the text and on both sides of each of ``, . ; : ? ! ` ``, and turns each tab, newline and
    carriage return into one space; case, Unicode form and repeated spaces stay. An entry matches where `" " + entry + " "` is a
    substring of that (entries themselves are taken as they are). `v2` leaves out the space on a side where the entry's outermost
    character belongs to a script written without spaces or is ASCII or CJK punctuation.

    Raises ValueError for a repeated entry and for semantics other than v1 and v2.
    """

    def __init__(self, entries: Sequence[str], semantics: Semantics = "v1") -> None:
        if semantics not in ("v1", "v2"):
            raise ValueError(f"semantics is {semantics!r}; it has to be v1 or v2")
        _refuse_repetition(entries)
        self.size = len(entries)
        data, offsets = string_buffers(pa.array(entries, pa.string()))
        self._trie = tokens.build(data, offsets, np.arange(self.size))

    def __len__(self) -> int:
        return self.size

    def match(self, texts: pa.StringArray) -> pa.ListArray:
        """Ascending distinct ids (int32) of the entries in each text; null for a null text."""
        data, offsets = string_buffers(texts)
        found, ends = tokens.match(data, offsets, self._trie)
        mask = texts.is_null() if texts.null_count else None
        return pa.ListArray.from_arrays(pa.array(ends.astype(np.int32)), pa.array(found), mask=mask)


def _refuse_repetition(entries: Sequence[str]) -> None:
    seen: dict[str, int] = {}
    for i, entry in enumerate(entries):
        if (first := seen.setdefault(entry, i)) != i:
            raise ValueError(f"metadata entry {i} repeats entry {first}: {entry!r}")
