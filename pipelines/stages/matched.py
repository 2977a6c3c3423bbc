"""The materialised matches of a pool: found where an earlier run left them, or made."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from llip import storage
from llip.data import manifest
from llip.data.manifest import FileEntry, Manifest
from pipelines import schema
from pipelines.stages import matching, metadata
from pipelines.stages.match import EntryMatcher, Semantics
from pipelines.stages.matching import TextRules
from pipelines.stages.read import Pool
from pipelines.stages.work import Stage, digest, run


@dataclass(frozen=True, kw_only=True)
class Matched:
    """What balancing needs to know."""

    folder: str
    entries: list[str]
    counts: np.ndarray
    """int64 [E]: texts of the pool that match each entry."""
    rows: int
    """Rows of the pool."""


def matches_of(
    pool: Pool,
    entries: list[str] | None,
    *,
    min_count: int,
    semantics: Semantics,
    text_rules: TextRules,
    unit_rows: int,
    folder: str,
) -> Matched:
    """Matches of a pool with `entries` (None: built from its captions), kept in a folder of their own under `folder`.

    The name of that folder is a digest of everything that matches depend on. Balancing is no part of it: another t or
    seed finds the matches done.
    """
    config = {
        "pool_digest": pool.digest,
        "metadata": digest(entries) if entries else f"built from words seen {min_count} times",
        "semantics": semantics,
        "text_rules": repr(text_rules),
        "unit_rows": unit_rows,
    }
    folder = storage.join(folder, digest(config))
    if manifest.is_done(folder, "matches", config):
        print(f"{folder} holds the matches already")
        done = manifest.read(folder, "matches")
        entries = storage.read_json(storage.join(folder, metadata.NAME))
        return Matched(folder=folder, entries=entries, counts=matching.read_counts(folder), rows=done.rows)

    progress = storage.join(folder, "progress")
    if entries is None:
        entries = _built(pool, min_count, folder, progress)
    storage.write_json(storage.join(folder, metadata.NAME), entries)
    files = _match(pool, entries, semantics, text_rules, folder, progress)
    counts = matching.count(pool.units, folder, len(entries))
    matching.write_counts(folder, counts)
    result = Manifest(kind="matches", files=tuple(FileEntry(**f) for f in files), config=config)
    manifest.write(folder, result)
    storage.remove(progress)
    metadata.remove_counts(folder)
    return Matched(folder=folder, entries=entries, counts=counts, rows=result.rows)


def _built(pool: Pool, min_count: int, folder: str, progress: str) -> list[str]:
    words = run(
        Stage(name="metadata", markers=progress, noun=pool.noun),
        pool.units,
        metadata.count_unit,
        sizes=[unit.size for unit in pool.units],
        shared={"pool_format": pool.format, "folder": folder},
    )
    return metadata.build(pool.units, folder=folder, words=sum(r["words"] for r in words), min_count=min_count)


def _match(
    pool: Pool, entries: Sequence[str], semantics: Semantics, text_rules: TextRules, folder: str, progress: str
) -> list[dict[str, Any]]:
    import ray

    columns = {c.column for c in text_rules.where} | ({schema.KINDS} & set(pool.extras.names))
    shared = {
        "folder": folder,
        "pool_format": pool.format,
        "columns": sorted(columns),
        "text_rules": text_rules,
        "matcher": ray.put(EntryMatcher(entries, semantics)),  # one copy a node, whose tasks map its arrays
    }
    stage = Stage(name="match", markers=progress, noun=pool.noun)
    return run(stage, pool.units, matching.match_unit, sizes=[unit.size for unit in pool.units], shared=shared)
