"""The pass that matches every caption of a pool and keeps the result, so that another t or seed needs no matching."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from llip import storage
from llip.data import manifest
from llip.data.manifest import Manifest
from pipelines import schema
from pipelines.stages import read
from pipelines.stages.columns import set_in_lists, whole
from pipelines.stages.filter import language, rules
from pipelines.stages.filter.rules import Condition
from pipelines.stages.hashing import MIX, hash64, uniform
from pipelines.stages.match import by_language, metadata
from pipelines.stages.match.by_language import OTHER, LanguageMatcher, Lists
from pipelines.stages.options import Semantics
from pipelines.stages.read import Pool
from pipelines.stages.work import Partition, Stage, counts, digest, intermediate, run

SCHEMA = pa.schema(
    [("row_reason", pa.uint8()), ("caption_reasons", pa.list_(pa.uint8())), ("matches", pa.list_(pa.list_(pa.int32())))]
)
"""One row a row of the pool: code of ROW_REASONS, of CAPTION_REASONS for each caption, and the entries that each
caption matches."""


COUNTS = "counts.arrows"
"""Texts that match each entry, a row an entry."""


@dataclass(frozen=True, kw_only=True)
class TextRules:
    """Rules that a row's text and columns have to satisfy before it is matched and counted."""

    min_words: int
    min_characters: int
    where: tuple[Condition, ...]
    languages: tuple[str, ...] = ()
    """Codes that captions may have; nothing: all."""
    shares: tuple[tuple[str, float], ...] = ()
    """(pool, share of its rows that stay), where pools have weights."""
    with_entries: tuple[str, ...] = ()
    """Languages that have entries of their own; none where one list serves all."""
    language_column: str | None = None
    """Column of the language of a row's captions; None: each caption's is identified."""


@dataclass(frozen=True, kw_only=True)
class Matched:
    """Matches of a pool: what balancing needs to know of them."""

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
    """Counts of what the pool's files hold that is not read, by kind."""
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
            counts=intermediate.read_array(storage.join(folder, COUNTS)),
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
    totals = counts.total(pool.partitions, partial(matched_entries, folder=folder), len(entries))
    intermediate.write_array(folder, COUNTS, totals)
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

    columns = (
        {schema.CAPTIONS} | {c.column for c in text_rules.where} | ({schema.CAPTION_TYPES} & set(pool.extras.names))
    )
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
    results = run(stage, pool.partitions, match_partition, sizes=sizes, shared=shared)
    unread = sum((Counter(result["unread"]) for result in results), Counter[str]())
    return sum(result["rows"] for result in results), dict(unread)


def match_partition(
    partition: Partition,
    *,
    folder: str,
    pool_format: str,
    columns: Sequence[str],
    text_rules: TextRules,
    matcher: LanguageMatcher | None,
) -> dict[str, Any]:
    """Match the captions of a partition and write `folder/matches-….arrows`.

    columns: captions, and those of the pool that the rules look at; matcher: None where captions need no match.
    """
    unread = Counter[str]()
    tables = read.tables(pool_format, partition, (*columns, schema.REASON), unread)
    found = pa.concat_tables(
        [SCHEMA.empty_table(), *(_matched(table, text_rules, matcher) for table in tables if table.num_rows)]
    )
    intermediate.write(folder, matches_name(partition), found)
    return {"rows": found.num_rows, "unread": unread}


def matches_name(partition: Partition) -> str:
    return f"matches-{partition.index:06d}.arrows"


def read_matches(folder: str, partition: Partition, dropped: str = "") -> pa.Table:
    """The table that `match_partition` wrote, less the rows that a later pass drops: `dropped_name` in that folder."""
    table = intermediate.read(storage.join(folder, matches_name(partition)))
    return (
        _without(table, intermediate.read_array(storage.join(dropped, dropped_name(partition.index))))
        if dropped
        else table
    )


def dropped_name(index: int) -> str:
    """File with a code of ROW_REASONS for each row of a partition, KEPT for those that stay."""
    return f"dropped-{index:06d}.arrows"


def _without(table: pa.Table, codes: np.ndarray) -> pa.Table:
    row_reason = table["row_reason"].to_numpy()
    row_reason = np.where(row_reason == rules.KEPT, codes, row_reason)
    lists = whole(table["caption_reasons"])
    reasons, lengths = lists.flatten().to_numpy(), lists.value_lengths().to_numpy()
    lost = (reasons == rules.KEPT) & np.repeat(row_reason != rules.KEPT, lengths)
    reasons = pa.array(np.where(lost, rules.CAPTION["its image was dropped"], reasons).astype(np.uint8))
    kept = pa.ListArray.from_arrays(lists.offsets, reasons)
    return pa.table([pa.array(row_reason), kept, table["matches"]], schema=SCHEMA)


def is_left(table: pa.Table) -> np.ndarray:
    """Rows of such a table that nothing drops before balancing, bool [N]."""
    lists = whole(table["caption_reasons"])
    return set_in_lists(lists.flatten().to_numpy() == rules.KEPT, lists.offsets.to_numpy()) > 0


def matched_entries(partition: Partition, *, folder: str, dropped: str = "", kept: str = "") -> np.ndarray:
    """The entries that the captions of a partition's rows match, int32, one after another.

    kept: folder whose `kept_name` says which captions count; all without it.
    """
    table = read_matches(folder, partition, dropped)
    matches = whole(table["matches"]).flatten()
    if kept:
        matches = matches.filter(pa.array(intermediate.read_array(storage.join(kept, kept_name(partition)))))
    elif dropped:
        matches = matches.filter(pc.equal(whole(table["caption_reasons"]).flatten(), rules.KEPT))
    return matches.flatten().to_numpy()


def kept_name(partition: Partition) -> str:
    """File that says which captions of a partition were kept, a bit a caption."""
    return f"kept-{partition.index:06d}.arrows"


def _matched(table: pa.Table, text_rules: TextRules, matcher: LanguageMatcher | None) -> pa.Table:
    captions = whole(table[schema.CAPTIONS])
    row_reason = _row_reasons(table, captions, text_rules)
    texts = captions.flatten()
    lengths = captions.value_lengths().to_numpy()
    reasons = rules.caption_reasons(texts, text_rules.min_words, text_rules.min_characters)
    reasons[np.repeat(row_reason, lengths) != rules.KEPT] = rules.CAPTION["its image was dropped"]
    if text_rules.languages:
        reasons = rules.language_reasons(texts, reasons, text_rules.languages)
    offsets = pa.array(np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32))
    is_asked = reasons == rules.KEPT
    asked = texts if is_asked.all() else pc.if_else(pa.array(is_asked), texts, pa.scalar(None, pa.string()))
    codes = _languages(table, asked, lengths, text_rules) if text_rules.with_entries else None
    if codes is not None and OTHER not in text_rules.with_entries:
        known = pc.is_in(codes, pa.array(text_rules.with_entries)).to_numpy(zero_copy_only=False)
        reasons[(reasons == rules.KEPT) & ~known] = rules.CAPTION["no entries for its language"]
    if matcher is None:
        none = np.zeros(len(texts) + 1, np.int32)
        matches = pa.ListArray.from_arrays(pa.array(none), pa.array([], pa.int32()))
    else:
        matches = matcher.match(asked, codes)
        reasons[(reasons == rules.KEPT) & (matches.value_lengths().fill_null(0).to_numpy() == 0)] = rules.CAPTION[
            "matches no entry"
        ]
    return pa.table(
        [
            pa.array(row_reason),
            pa.ListArray.from_arrays(offsets, pa.array(reasons)),
            pa.ListArray.from_arrays(offsets, matches),
        ],
        schema=SCHEMA,
    )


def _languages(table: pa.Table, texts: pa.StringArray, lengths: np.ndarray, text_rules: TextRules) -> pa.StringArray:
    """Code of the language of each text that is not null."""
    if text_rules.language_column is not None:
        of_rows = whole(table[text_rules.language_column]).cast(pa.string())
        return of_rows.take(pa.array(np.repeat(np.arange(len(lengths)), lengths)))
    given = texts.is_valid()
    return pc.replace_with_mask(texts, given, pa.array(language.detect(texts.filter(given).to_pylist()), pa.string()))


def _row_reasons(table: pa.Table, captions: pa.ListArray, text_rules: TextRules) -> np.ndarray:
    reasons = np.zeros(table.num_rows, np.uint8)
    for condition in text_rules.where:
        reasons[~condition.holds(whole(table[condition.column]))] = rules.ROW["excluded by a column"]
    if schema.CAPTION_TYPES in table.column_names:
        types = pc.fill_null(pc.list_value_length(table[schema.CAPTION_TYPES]), 0).to_numpy()
        reasons[types != captions.value_lengths().to_numpy()] = rules.ROW["caption types are not parallel to captions"]
    reasons[captions.value_lengths().to_numpy() == 0] = rules.ROW["no captions"]
    said = table[schema.REASON]
    if said.null_count < len(said):
        for row, reason in enumerate(said.to_pylist()):
            if reason is not None:
                reasons[row] = rules.ROW[reason]
    if text_rules.shares:
        drawn = uniform(hash64(whole(table[schema.ID]), 0, MIX))
        pool = dict(text_rules.shares)[table[schema.POOL][0].as_py()]  # a partition's rows are of one pool
        reasons[drawn >= pool] = rules.ROW["thinned out by its pool's weight"]
    return reasons
