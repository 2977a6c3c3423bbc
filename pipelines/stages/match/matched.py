"""The materialised matches of a pool: found where an earlier run left them, or made."""

from collections import Counter
from dataclasses import dataclass
from functools import partial

import numpy as np

from llip import storage
from llip.data import manifest
from llip.data.manifest import Manifest
from pipelines import schema
from pipelines.stages.filter import rules
from pipelines.stages.match import by_language, matching, metadata
from pipelines.stages.match.by_language import LanguageMatcher, Lists
from pipelines.stages.match.matching import TextRules
from pipelines.stages.options import Semantics
from pipelines.stages.read import Pool
from pipelines.stages.work import Stage, counts, digest, intermediate, run


@dataclass(frozen=True, kw_only=True)
class Matched:
    """What balancing needs to know."""

    folder: str
    entries: list[str]
    """Names of the entries, those of one language after those of another."""
    languages: dict[str, int]
    """Number of entries of each language; "" where one list serves all."""
    counts: np.ndarray
    """int64 [E]: texts of the pool that match each entry."""
    rows: int
    """Rows of the pool."""
    unread: dict[str, int]
    """What was found in the files of the pool and not read, by kind."""
    dropped: str = ""
    """Folder that says which rows are duplicates; empty where none were looked for."""


def matches_of(
    pool: Pool,
    lists: Lists | None,
    *,
    balanced: bool,
    min_count: int,
    semantics: Semantics,
    text_rules: TextRules,
    partition_rows: int,
    folder: str,
) -> Matched:
    """Matches of a pool with the entries of `lists` (None: built from its captions), kept in a folder of their own in
    `folder`. Not `balanced`: no captions are matched, only judged by the rules.

    The name of that folder is a digest of everything that matches depend on. Balancing is no part of it: another t or
    seed finds the matches done.
    """
    config = {
        "pool_digest": pool.digest,
        "metadata": digest(lists) if lists else f"built from words seen {min_count} times" if balanced else "none",
        "semantics": semantics,
        "text_rules": repr(text_rules),
        "partition_rows": partition_rows,
        "format": "arrows, sum of mixed words",
        "reasons": [*rules.ROW_REASONS, *rules.CAPTION_REASONS],
    }
    folder = storage.join(folder, digest(config))
    if manifest.is_done(folder, "matches", config):
        print(f"{folder} holds the matches already")
        done = manifest.read(folder, "matches")
        return Matched(
            folder=folder,
            entries=storage.read_json(storage.join(folder, metadata.NAME)),
            languages=done.summary["languages"],
            counts=intermediate.read_array(storage.join(folder, matching.COUNTS)),
            rows=done.summary["rows"],
            unread=done.summary["unread"],
        )

    progress = storage.join(folder, "progress")
    if not balanced:
        lists = {"": []}
    elif lists is None:
        lists = {"": metadata.of_corpus(pool, folder=folder, markers=progress, min_count=min_count)}
    entries = by_language.labels(lists)
    storage.write_json(storage.join(folder, metadata.NAME), entries)
    rows, unread = _match(pool, lists, semantics, text_rules, folder, progress)
    totals = counts.total(pool.partitions, partial(matching.matched_entries, folder=folder), len(entries))
    intermediate.write_array(folder, matching.COUNTS, totals)
    sizes = {code: len(of_language) for code, of_language in lists.items()}
    summary = {"languages": sizes, "rows": rows, "unread": unread}
    manifest.write(folder, Manifest(kind="matches", files=(), config=config, summary=summary))
    storage.remove(progress)
    metadata.remove_counts(folder)
    return Matched(folder=folder, entries=entries, languages=sizes, counts=totals, rows=rows, unread=unread)


def _match(
    pool: Pool, lists: Lists, semantics: Semantics, text_rules: TextRules, folder: str, progress: str
) -> tuple[int, dict[str, int]]:
    """Match every partition; returns how many rows the pool has, and what its files hold that is not read."""
    import ray

    columns = {schema.CAPTIONS} | {c.column for c in text_rules.where} | ({schema.KINDS} & set(pool.extras.names))
    if text_rules.language_column is not None:
        columns.add(text_rules.language_column)
    if text_rules.shares:
        columns |= {schema.ID, schema.POOL}
    shared = {
        "folder": folder,
        "pool_format": pool.format,
        "columns": sorted(columns),
        "text_rules": text_rules,
        "matcher": ray.put(
            LanguageMatcher(lists, semantics) if any(lists.values()) else None
        ),  # one copy a node, whose tasks map its arrays
    }
    stage = Stage(name="match", markers=progress, noun=pool.noun)
    sizes = [partition.size for partition in pool.partitions]
    results = run(stage, pool.partitions, matching.match_partition, sizes=sizes, shared=shared)
    unread = sum((Counter(result["unread"]) for result in results), Counter[str]())
    return sum(result["rows"] for result in results), dict(unread)
