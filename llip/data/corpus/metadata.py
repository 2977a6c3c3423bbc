"""Metadata for curation, made from the corpus: what its captions can be matched with."""

import re
from collections import Counter
from itertools import pairwise

from llip import storage
from llip.data.corpus.catalogue import catalogue
from llip.data.corpus.config import CorpusConfig
from llip.data.corpus.pool import captioned

SAMPLE = 4_000
"""Rows whose captions give the single words and the pairs of words."""
MIN_COUNT = 4
"""Occurrences that a word or a pair needs."""


def metadata_entries(config: CorpusConfig) -> list[str]:
    """Distinct entries, sorted: names, aliases, keywords and categories of what training sees, and frequent words.

    Words and pairs of words are counted in the captions of the first `SAMPLE` rows.
    """
    drawings = catalogue(config)
    entries: set[str] = set()
    for key in {d.concept for d in drawings.training_emoji + drawings.icons}:
        concept = drawings.concepts[key]
        entries.update((concept.name, *concept.aliases, *concept.keywords, *concept.groups, *concept.subgroups))
    counts: Counter[str] = Counter()
    for index in range(min(config.rows, SAMPLE)):
        for caption, _ in captioned(drawings, config, index)[1]:
            words = re.findall(r"[A-Za-z][A-Za-z'-]*", caption)
            counts.update(set(words) | {" ".join(pair) for pair in pairwise(words)})
    entries.update(entry for entry, count in counts.items() if count >= MIN_COUNT)
    return sorted(entries)


def write_metadata(uri: str, config: CorpusConfig) -> None:
    """Write `metadata_entries` as a JSON list."""
    storage.write_json(uri, metadata_entries(config))
