"""Entries from WordNet: the lemmas of its synsets."""

import re

from llip import storage
from llip.data import text_files

PARTS = ("noun", "verb", "adj", "adv")
"""WordNet's database files are `data.noun` and so on."""
MARKER = re.compile(r"\((a|p|ip)\)$")
"""Mark of an adjective's position, behind its lemma."""


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
        for number, line in text_files.numbered_lines(uri):
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
