"""The pass that draws which captions stay and writes the images that keep at least one."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipelines import schema
from pipelines.stages import balance, hashing, read, write
from pipelines.stages.columns import set_in_lists, whole
from pipelines.stages.filter import rules
from pipelines.stages.filter.rules import CAPTION, KEPT, ROW, ImageRules
from pipelines.stages.match import matching
from pipelines.stages.work import Partition, intermediate


@dataclass(frozen=True, kw_only=True)
class Draw:
    """Settings of the draw that decides which captions and images stay."""

    seed: int
    image_rules: ImageRules
    online: bool = False
    """Keep all captions that match, with their probabilities: the loader draws."""

    everything: bool = False
    """Keep all captions that the rules keep: nothing is balanced."""


SAMPLES = 24
"""Kept rows that the data card shows."""


def file_name(partition: Partition) -> str:
    return f"curated-{partition.index:06d}.parquet"


def select_partition(
    partition: Partition,
    *,
    folder: str,
    kept_folder: str,
    matches: str,
    dropped: str,
    pool_format: str,
    columns: pa.Schema,
    draw: Draw,
    log_misses: np.ndarray,
) -> dict[str, Any]:
    """Write the kept rows of a partition, and to `kept_folder` which captions these are.

    columns: of the pool; log_misses: of the entries, see `balance.log_misses`. Returns the file's entry and what the
    data card adds up.
    """
    decided = matching.read_matches(matches, partition, dropped)
    kept_captions: list[np.ndarray] = []
    samples: list[tuple[int, int]] = []
    reasons: dict[str, Counter[str]] = {"rows": Counter(), "captions": Counter()}
    sizes: dict[str, Counter[int]] = {name: Counter() for name in ("side", "characters", "captions", "bytes")}
    row = 0
    of_pool = columns.names
    if draw.online:
        columns = columns.append(pa.field(schema.KEEP_PROBABILITY, pa.list_(pa.float64())))
    with write.parquet_file(folder, file_name(partition), columns) as file:
        for table in read.tables(pool_format, partition, of_pool):
            part = decided.slice(row, table.num_rows).combine_chunks()
            row += table.num_rows
            matched = whole(part["matches"]).flatten()
            probability = balance.keep_probability_of(matched, log_misses)
            states = hashing.states(whole(table[schema.ID]), draw.seed)
            numbers = 0.0 if draw.online else balance.draws(states, whole(part["caption_reasons"]).offsets.to_numpy())
            drawn = np.full(len(matched), True) if draw.everything else numbers < probability
            row_reasons, caption_reasons = _decide(table, part, drawn, draw.image_rules, sizes["side"])
            reasons["rows"].update(_named(row_reasons, rules.ROW_REASONS))
            reasons["captions"].update(_named(caption_reasons, rules.CAPTION_REASONS))
            if draw.online:
                offsets = whole(table[schema.CAPTIONS]).offsets
                lists = pa.ListArray.from_arrays(pc.subtract(offsets, offsets[0]), pa.array(probability))
                table = table.append_column(schema.KEEP_PROBABILITY, lists)
            kept = _kept(table, row_reasons, caption_reasons)
            if kept.num_rows:
                samples += _samples(states[row_reasons == KEPT], file.rows)
                file.write(kept.select(columns.names).cast(columns))
                _measure(kept, sizes)
            kept_captions.append(caption_reasons == KEPT)
    if row != decided.num_rows:
        raise ValueError(
            f"{partition.file} has {row} rows where {decided.num_rows} were matched: the pool changed during curation"
        )
    intermediate.write_array(
        kept_folder, matching.kept_name(partition), np.concatenate([np.zeros(0, bool), *kept_captions])
    )
    return {"file": asdict(file.entry), "counts": reasons, "sizes": sizes, "samples": sorted(samples)[:SAMPLES]}


def _decide(
    table: pa.Table, decided: pa.Table, drawn: np.ndarray, image_rules: ImageRules, sides: Counter[int]
) -> tuple[np.ndarray, np.ndarray]:
    """Codes of ROW_REASONS (uint8 [N]) and, for all captions one after another, of CAPTION_REASONS (uint8 [T]).

    drawn: bool [T], which captions balancing leaves; the shorter sides of images that stay are added to `sides`.
    """
    row_reasons = decided["row_reason"].to_numpy().copy()
    lists = whole(decided["caption_reasons"])
    reasons = lists.flatten().to_numpy().copy()
    offsets = lists.offsets.to_numpy()
    reasons[(reasons == KEPT) & ~drawn] = CAPTION["thinned out by balancing"]
    row_reasons[(row_reasons == KEPT) & (set_in_lists(reasons == KEPT, offsets) == 0)] = ROW["no caption kept"]
    if schema.IMAGE in table.column_names:
        left = np.flatnonzero(row_reasons == KEPT)
        row_reasons[left], short = rules.judge(whole(table[schema.IMAGE]), left, image_rules)
        _count(sides, short[row_reasons[left] == KEPT])
    stays = np.repeat(row_reasons == KEPT, np.diff(offsets))
    reasons[(reasons == KEPT) & ~stays] = CAPTION["its image was dropped"]
    return row_reasons, reasons


def _kept(table: pa.Table, row_reasons: np.ndarray, caption_reasons: np.ndarray) -> pa.Table:
    """Rows that stay, with the captions that stay and the columns parallel to these."""
    before = whole(table[schema.CAPTIONS]).offsets.to_numpy()
    stays, flags = row_reasons == KEPT, caption_reasons == KEPT
    offsets = pa.array(np.concatenate([[0], np.cumsum(set_in_lists(flags, before)[stays])]).astype(np.int32))
    columns = {}
    for name in table.column_names:
        column = whole(table[name])
        if name == schema.CAPTIONS:  # no caption of a row that goes is kept
            columns[name] = pa.ListArray.from_arrays(offsets, column.flatten().filter(pa.array(flags)))
        else:
            columns[name] = column.filter(pa.array(stays))
        if name in (schema.CAPTION_TYPES, schema.KEEP_PROBABILITY):  # parallel to the captions, where a row stays
            of_kept_rows = pa.array(flags[np.repeat(stays, np.diff(before))])
            columns[name] = pa.ListArray.from_arrays(offsets, columns[name].flatten().filter(of_kept_rows))
    return pa.table(columns)


def _samples(states: np.ndarray, first_row: int) -> list[tuple[int, int]]:
    """(hash, number in the file) of the rows with the smallest hashes, given the states of all kept rows."""
    hashes = hashing.finish(states, hashing.SAMPLE)
    rows = np.argpartition(hashes, SAMPLES)[:SAMPLES] if len(hashes) > SAMPLES else np.arange(len(hashes))
    return [(int(hashes[row]), first_row + int(row)) for row in rows]


def _named(codes: np.ndarray, names: Sequence[str]) -> dict[str, int]:
    return {names[code]: int(n) for code, n in enumerate(np.bincount(codes, minlength=len(names))) if n}


def _measure(kept: pa.Table, sizes: dict[str, Counter[int]]) -> None:
    """Add to the histograms of the data card: captions an image, characters a caption, and bytes an image rounded up
    to a power of two."""
    captions = whole(kept[schema.CAPTIONS])
    _count(sizes["captions"], captions.value_lengths().to_numpy())
    _count(sizes["characters"], pc.utf8_length(captions.flatten()).to_numpy())
    if schema.IMAGE in kept.column_names:
        _, bits = np.frexp(pc.binary_length(kept[schema.IMAGE]).to_numpy() - 1.0)
        _count(sizes["bytes"], np.left_shift(1, bits))


def _count(histogram: Counter[int], values: np.ndarray) -> None:
    found, times = np.unique(values, return_counts=True)
    histogram.update(dict(zip(found.tolist(), times.tolist(), strict=True)))
