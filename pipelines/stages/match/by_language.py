"""Captions in several languages: which language one is in, and a list of entries for each
(Chuang et al., "Meta CLIP 2", arXiv 2507.22062)."""

import re
from collections.abc import Mapping, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from llip import storage
from llip.data import manifest
from pipelines.stages.match import metadata
from pipelines.stages.match.matcher import EntryMatcher
from pipelines.stages.options import Semantics

SUFFIXES = tuple(suffix + gz for suffix in (".json", ".jsonl", ".txt", ".parquet") for gz in ("", ".gz"))
OTHER = "other"
"""Name of the list for languages that have none of their own."""
CODE = re.compile(rf"[A-Za-z]{{2,3}}([-_][A-Za-z0-9]+)*|{OTHER}")
Lists = dict[str, list[str]]
"""Entries by language; one list for all captions has the name "" instead."""


def load(uri: str) -> Lists:
    """The entries of a file, or those of a folder with a file a language: `en.json`, `ja.txt`, `zh/metadata.json`.
    Raises ValueError, also for two lists of one language and for a name that is no language."""
    if not storage.is_folder(uri):
        return {"": metadata.load(uri)}
    found = {storage.inside(uri, file): file for file in storage.listing(uri) if file.endswith(SUFFIXES)}
    found = {name: file for name, file in found.items() if name != manifest.NAME and not name.startswith((".", "_"))}
    if [*found] == [metadata.NAME]:
        return {"": metadata.load(found[metadata.NAME])}
    files: dict[str, str] = {}
    for name, file in found.items():
        code = name.partition("/")[0].partition(".")[0]
        if not CODE.fullmatch(code):
            raise ValueError(f"{file}: {code!r} is no code of a language, such as en or zh, nor {OTHER!r}")
        if other := next((files[known] for known in files if known.lower() == code.lower()), None):
            raise ValueError(f"{other} and {file} are both lists of {code!r}; a language has one: remove one")
        files[code] = file
    if not files:
        raise ValueError(f"{uri} holds no lists of entries: files such as en.json, ja.txt or de.parquet are needed")
    return {code: metadata.load(file) for code, file in files.items()}


def labels(lists: Lists) -> list[str]:
    """Names of all entries, in the order of their ids: with their language where there are several."""
    return [f"{code}:{entry}" if code else entry for code, entries in lists.items() for entry in entries]


class LanguageMatcher:
    """An EntryMatcher for each language. The ids of a language's entries follow those of the one before."""

    def __init__(self, lists: Mapping[str, Sequence[str]], semantics: Semantics) -> None:
        self.codes = list(lists)
        self.matchers = [EntryMatcher(entries, semantics) for entries in lists.values()]
        self.first = np.cumsum([0, *map(len, self.matchers)])

    def match(self, texts: pa.StringArray, languages: pa.StringArray | None) -> pa.ListArray:
        """Match each text as `EntryMatcher.match` does, with the entries of its language, or else those of OTHER;
        null for one that has none.

        languages: code of each text; None where one list serves all.
        """
        if languages is None:
            return self.matchers[0].match(texts)
        other = self.codes.index(OTHER) if OTHER in self.codes else -1
        index = pc.fill_null(pc.index_in(languages, pa.array(self.codes)), other).to_numpy()
        rows = [np.flatnonzero(index == i) for i in range(-1, len(self.codes))]
        parts = [pa.nulls(len(rows[0]), pa.list_(pa.int32()))]
        for matcher, first, chosen in zip(self.matchers, self.first[:-1], rows[1:], strict=True):
            found = matcher.match(texts.take(pa.array(chosen)))
            ids = pc.add(found.values, pa.scalar(first, pa.int32()))
            mask = found.is_null() if found.null_count else None
            parts.append(pa.ListArray.from_arrays(found.offsets, ids, mask=mask))
        return pa.concat_arrays(parts).take(pa.array(np.argsort(np.concatenate(rows), kind="stable")))
