"""The pass that matches every caption of a pool and keeps the result, so that another t or seed needs no matching."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from llip import storage
from pipelines import schema
from pipelines.stages import filter as rules
from pipelines.stages import read, write
from pipelines.stages.filter import Condition
from pipelines.stages.match import EntryMatcher
from pipelines.stages.units import Unit

SCHEMA = pa.schema(
    [("row_reason", pa.uint8()), ("caption_reasons", pa.list_(pa.uint8())), ("matches", pa.list_(pa.list_(pa.int32())))]
)
"""One row a row of the pool: code of ROW_REASONS, of CAPTION_REASONS for each caption, and the entries that each
caption matches."""


COUNTS = "counts.parquet"
GROUPS = 64
"""Tasks that counts are summed in: each returns one count an entry."""


@dataclass(frozen=True, kw_only=True)
class TextRules:
    """What a row's text and columns have to satisfy before it is matched and counted."""

    min_words: int
    min_characters: int
    where: tuple[Condition, ...]


def match_unit(
    unit: Unit, *, folder: str, pool_format: str, columns: Sequence[str], text_rules: TextRules, matcher: EntryMatcher
) -> dict[str, Any]:
    """Match the captions of a unit and write `folder/matches-….parquet`. `columns`: those of the pool that the rules
    look at."""
    with write.parquet_file(folder, matches_name(unit), SCHEMA) as file:
        for table in read.tables(pool_format, unit, columns, images=False):
            file.write(_matched(table, text_rules, matcher))
    return asdict(file.entry)


def matches_name(unit: Unit) -> str:
    return f"matches-{unit.index:06d}.parquet"


def read_matches(folder: str, unit: Unit) -> pa.Table:
    """The table that `match_unit` wrote."""
    return pq.read_table(pa.BufferReader(storage.read_bytes(storage.join(folder, matches_name(unit)))))


def count(units: Sequence[Unit], folder: str, entries: int) -> np.ndarray:
    """Texts of the pool that match each entry, int64 [E]: sums over groups of units, added up by hand."""
    import ray

    groups = [list(units[i::GROUPS]) for i in range(min(GROUPS, len(units)))]
    add = ray.remote(_count)
    return np.sum(ray.get([add.remote(group, folder, entries) for group in groups]), axis=0)


def _count(units: Sequence[Unit], folder: str, entries: int) -> np.ndarray:
    counts = np.zeros(entries, np.int64)
    for unit in units:
        for lists in read_matches(folder, unit)["matches"].chunks:
            counts += np.bincount(lists.flatten().flatten().to_numpy(), minlength=entries)
    return counts


def write_counts(folder: str, counts: np.ndarray) -> None:
    with storage.atomic_writer(storage.join(folder, COUNTS)) as file:
        pq.write_table(pa.table({"count": counts}), file)


def read_counts(folder: str) -> np.ndarray:
    return pq.read_table(pa.BufferReader(storage.read_bytes(storage.join(folder, COUNTS))))["count"].to_numpy()


def _matched(table: pa.Table, text_rules: TextRules, matcher: EntryMatcher) -> pa.Table:
    captions = table[schema.CAPTIONS].combine_chunks()
    row_reason = _row_reasons(table, captions, text_rules.where)
    texts = captions.flatten()
    lengths = captions.value_lengths().to_numpy()
    reasons = rules.caption_reasons(texts, text_rules.min_words, text_rules.min_characters)
    reasons[np.repeat(row_reason, lengths) != rules.KEPT] = rules.CAPTION["its image was dropped"]
    offsets = pa.array(np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32))
    matches = matcher.match(pc.if_else(pa.array(reasons == rules.KEPT), texts, pa.scalar(None, pa.string())))
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


def _row_reasons(table: pa.Table, captions: pa.ListArray, where: Sequence[Condition]) -> np.ndarray:
    reasons = np.zeros(table.num_rows, np.uint8)
    for condition in where:
        reasons[~condition.holds(table[condition.column].combine_chunks())] = rules.ROW["excluded by a column"]
    if schema.KINDS in table.column_names:
        kinds = pc.fill_null(pc.list_value_length(table[schema.KINDS]), 0).to_numpy()
        reasons[kinds != captions.value_lengths().to_numpy()] = rules.ROW["kinds are not parallel to captions"]
    reasons[captions.value_lengths().to_numpy() == 0] = rules.ROW["no captions"]
    return reasons
