"""Entries that others have listed: WordNet's lemmas, and titles of articles."""

import re
from collections.abc import Iterator

from llip import storage
from llip.data import text_files

PARTS = ("noun", "verb", "adj", "adv")
"""WordNet's database files are `data.noun` and so on."""
MARKER = re.compile(r"\((a|p|ip)\)$")
"""Where an adjective may stand, behind its lemma."""


def lemmas(folder: str) -> list[str]:
    """The distinct lemmas of all synsets of a WordNet database (its files as wndb(5WN) describes them), in their
    order, with spaces for underscores.

    Raises ValueError for a folder without one of the four files, and for a line that is none of a synset.
    """
    found: dict[str, None] = {}
    for part in PARTS:
        uri = storage.join(folder, f"data.{part}")
        if not storage.exists(uri):
            raise ValueError(
                f"{uri} does not exist; --wordnet is the folder of data.noun, data.verb, data.adj, data.adv"
            )
        for number, line in _lines(uri):
            if line.startswith("  "):  # the licence at the top
                continue
            fields = line.split(" ")
            try:
                count = int(fields[3], 16)
                words = fields[4 : 4 + 2 * count : 2]
                assert len(words) == count
            except (IndexError, ValueError, AssertionError) as error:
                raise ValueError(f"{uri}, line {number} is no synset: {line[:60]!r}") from error
            found |= dict.fromkeys(MARKER.sub("", word).replace("_", " ") for word in words)
    return list(found)


def titles(uri: str, min_views: int) -> list[str]:
    """Distinct titles of a text file with one a line, or a title, a tab and its page views: those with `min_views`, by
    falling views and else in the order of the file. Raises ValueError naming a line whose views are no number."""
    if not storage.exists(uri):
        raise ValueError(f"{uri} does not exist; --titles is a text file with a title a line")
    found: dict[str, int] = {}
    for number, line in _lines(uri):
        title, tab, views = line.partition("\t")
        if tab and not views.strip().isdecimal():
            raise ValueError(f"{uri}, line {number}: {views!r} is no number of views")
        if title.strip():
            found[title.strip()] = max(found.get(title.strip(), 0), int(views) if tab else min_views)
    return sorted((title for title, views in found.items() if views >= min_views), key=lambda title: -found[title])


def _lines(uri: str) -> Iterator[tuple[int, str]]:
    yield from enumerate(text_files.all_lines(text_files.decoded(storage.read_bytes(uri), uri)), 1)
