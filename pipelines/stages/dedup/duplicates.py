"""Duplicates and near-duplicates of images in a pool, and of the images of evaluation sets, found without bringing the
pool together in one place.

1. *fingerprint*: every partition decodes its candidates and writes their fingerprints, by bins of keys that duplicates
   share.
2. *compare*: every bin finds the rows that another one makes redundant, and writes them by partition.
3. *resolve*: every partition reads what the bins say of its rows, and keeps one reason a row.

The row with the smallest hash of its id is kept of rows that are alike: at most one of any two rows within the distance
stays, and every chain of alike rows keeps one or more. What is dropped is a pure function of the candidates' ids and
bytes. Candidates are rows that nothing else drops before balancing: a row that the size rules drop replaces none.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from llip import storage
from llip.data import manifest
from llip.data.manifest import Manifest
from llip.evaluation.sets import image_references, read_set
from pipelines import schema
from pipelines.stages import read
from pipelines.stages.columns import whole
from pipelines.stages.dedup import fingerprint
from pipelines.stages.filter import rules
from pipelines.stages.filter.rules import ImageRules
from pipelines.stages.hashing import RANK, hash64
from pipelines.stages.match import matching
from pipelines.stages.match.matching import Matched
from pipelines.stages.options import Dedup
from pipelines.stages.pixels import UnusableImageError
from pipelines.stages.read import Pool
from pipelines.stages.work import Partition, Stage, counts, digest, intermediate, run, spill
from pipelines.stages.work.spill import Piece

BIN_RECORDS = 1 << 20
"""Records of a bin, about: what one task holds."""
EVALUATION = -1
"""In the place of a partition: the row is an image of an evaluation set."""

PRINT = pa.binary(fingerprint.BITS // 8)
RECORD = pa.schema(
    [
        ("key", pa.uint64()),
        ("level", pa.uint8()),
        ("fingerprint", PRINT),
        ("rank", pa.uint64()),
        ("partition", pa.int32()),
        ("row", pa.int32()),
    ]
)
"""A row under one of its keys. `row` counts the candidates of the partition."""
DROPPED = pa.schema([("row", pa.int32()), ("level", pa.uint8()), ("code", pa.uint8())])
"""A candidate of a partition that is dropped, and its code of ROW_REASONS."""
NOT_DROPPED = 255
"""Above all codes of ROW_REASONS: of several reasons the first in that list counts."""


@dataclass(frozen=True, kw_only=True)
class Level:
    """One kind of fingerprint, and when two of them are alike."""

    reason: str
    distance: int
    masks: np.ndarray
    """uint64 [K, 4], see `fingerprint.masks`."""


@dataclass(frozen=True, kw_only=True)
class Part:
    """A bin, or what the bins say of a partition."""

    index: int
    pieces: tuple[Piece, ...]
    rows: int = 0
    """Rows of the partition."""


def without_duplicates(pool: Pool, matched: Matched, dedup: Dedup, image_rules: ImageRules) -> Matched:
    """The matches without those of duplicates; which rows these are is kept beside the matches."""
    sets = dedup.sets()
    config = {
        "duplicates": dedup.duplicates,
        "distance": dedup.distance,
        "evaluation": [source.digest() for source in sets],
        "image_rules": repr(image_rules),
    }
    folder = storage.join(matched.folder, "duplicates", digest(config))
    if manifest.is_done(folder, "duplicates", config):
        print(f"{folder} says already which rows are duplicates")
        return replace(matched, counts=intermediate.read_array(storage.join(folder, matching.COUNTS)), dropped=folder)
    progress = storage.join(folder, "progress")
    _resolve(pool, matched, dedup, image_rules, [source.uri for source in sets], folder, progress)
    entries_of = partial(matching.matched_entries, folder=matched.folder, dropped=folder)
    left = counts.total(pool.partitions, entries_of, len(matched.entries))
    intermediate.write_array(folder, matching.COUNTS, left)
    manifest.write(folder, Manifest(kind="duplicates", files=(), config=config))
    storage.remove(progress)
    return replace(matched, counts=left, dropped=folder)


def _resolve(
    pool: Pool,
    matched: Matched,
    dedup: Dedup,
    image_rules: ImageRules,
    sets: list[str],
    folder: str,
    progress: str,
) -> None:
    """Run the three passes."""
    kinds = levels(dedup, matched.rows)
    bins = -(-matched.rows * sum(len(kind.masks) for kind in kinds) // BIN_RECORDS)
    shared: dict[str, Any] = {"folder": progress, "levels": kinds}
    reading = {"matches": matched.folder, "pool_format": pool.format, "image_rules": image_rules}
    sizes = [partition.size for partition in pool.partitions]
    of_partitions = run(
        Stage(name="fingerprint", markers=progress, noun=pool.noun),
        pool.partitions,
        fingerprint_partition,
        sizes=sizes,
        shared=shared | reading | {"bins": bins},
    )
    of_sets = []
    if sets:
        of_sets = run(
            Stage(name="fingerprint-sets", markers=progress, noun="sets"),
            list(enumerate(sets)),
            fingerprint_evaluation,
            sizes=[1] * len(sets),
            shared=shared | {"bins": bins},
        )
    shared |= {"duplicates": dedup.duplicates}
    dropped = run(
        Stage(name="compare", markers=progress, noun="bins"),
        _parts(progress, {"partition": of_partitions, "evaluation": of_sets}, [0] * bins),
        compare_bin,
        sizes=[1] * bins,
        shared=shared | {"partitions": len(pool.partitions)},
    )
    run(
        Stage(name="resolve", markers=progress, noun=pool.noun),
        _parts(progress, {"dropped": dropped}, [result["rows"] for result in of_partitions]),
        resolve_partition,
        sizes=sizes,
        shared=shared | {"folder": folder, "progress": progress},
    )


def levels(dedup: Dedup, rows: int) -> list[Level]:
    """Fingerprints that are compared in a pool of so many rows."""
    found = [Level(reason="duplicate", distance=0, masks=fingerprint.masks(0, rows))]
    if dedup.distance is not None:
        masks = fingerprint.masks(dedup.distance, rows)
        found.append(Level(reason="near_duplicate", distance=dedup.distance, masks=masks))
    return found


def _parts(folder: str, results: dict[str, list[dict[str, Any]]], rows: list[int]) -> list[Part]:
    """Parts of the next pass: for each, its pieces of the files that the last pass wrote."""
    files = [storage.join(folder, spill_name(name, i)) for name, of in results.items() for i in range(len(of))]
    ends = spill.ends([result["bytes"] for of in results.values() for result in of])
    return [Part(index=i, pieces=spill.pieces(files, ends, i, i), rows=n) for i, n in enumerate(rows)]


def spill_name(stage: str, index: int) -> str:
    return f"{stage}-{index:06d}.arrows"


def fingerprint_partition(
    partition: Partition,
    *,
    folder: str,
    matches: str,
    pool_format: str,
    image_rules: ImageRules,
    levels: Sequence[Level],
    bins: int,
) -> dict[str, Any]:
    """Write the fingerprints of a partition's candidates, and their records by bin. Returns the bytes of each bin."""
    decided, row = matching.read_matches(matches, partition), 0
    rows, ranks, prints = [np.zeros(0, np.int32)], [np.zeros(0, np.uint64)], [_no_prints(levels)]
    for table in read.tables(pool_format, partition, (schema.ID, schema.IMAGE)):
        candidates = np.flatnonzero(matching.is_left(decided.slice(row, table.num_rows)))
        images = whole(table[schema.IMAGE])
        codes, _ = rules.judge(images, candidates, image_rules)
        pairs = [(i, _prints(images[int(i)].as_py(), levels)) for i in candidates[codes == rules.KEPT]]
        readable = np.array([i for i, found in pairs if found is not None], np.int32)
        rows.append(row + readable)
        ids = whole(table[schema.ID])
        ranks.append(hash64(ids, 0, RANK)[readable])
        prints.append(np.array([p for _, p in pairs if p is not None], np.uint64).reshape(-1, *prints[0].shape[1:]))
        row += table.num_rows
    found = np.concatenate(prints)
    candidates = pa.table({"row": np.concatenate(rows), "rank": np.concatenate(ranks), "prints": _binary(found)})
    with storage.atomic_writer(storage.join(folder, _candidates_name(partition.index))) as file:
        pq.write_table(candidates, file)
    uri = storage.join(folder, spill_name("partition", partition.index))
    return scatter(uri, partition.index, found, candidates["rank"].to_numpy(), levels, bins) | {"rows": row}


def fingerprint_evaluation(item: tuple[int, str], *, folder: str, levels: Sequence[Level], bins: int) -> dict[str, Any]:
    """The same of an evaluation set, given its number and folder. Raises ValueError for an image that can't be
    read."""
    index, uri = item
    pairs = read_set(uri)
    prints = []
    for row, value in enumerate(pairs.table["image"]):
        data = image_references.encoded(value.as_py())
        found = _prints(data, levels) if rules.opened(data)[0] == rules.KEPT else None
        if found is None:
            raise ValueError(f"{uri}: the image of row {row} can't be decoded; nothing can be compared with it")
        prints.append(found)
    target = storage.join(folder, spill_name("evaluation", index))
    return scatter(target, EVALUATION, np.array(prints), np.zeros(len(prints), np.uint64), levels, bins)


def compare_bin(
    part: Part, *, folder: str, levels: Sequence[Level], duplicates: bool, partitions: int
) -> dict[str, Any]:
    """Write which rows of a bin are dropped, by partition. Returns the bytes of each partition."""
    records = pa.concat_tables([RECORD.empty_table(), *spill.read(part.pieces)]).combine_chunks()
    dropped = [np.zeros((0, 4), np.int64)]
    for number, level in enumerate(levels):
        some = records.filter(pa.compute.equal(records["level"], number))
        dropped.append(_duplicates(some, number, level, duplicates))
    partition, row, number, code = np.unique(np.concatenate(dropped), axis=0).T
    table = pa.table([row.astype(np.int32), number.astype(np.uint8), code.astype(np.uint8)], schema=DROPPED)
    uri = storage.join(folder, spill_name("dropped", part.index))
    return {"bytes": spill.write(uri, table, np.arange(len(partition)), np.bincount(partition, minlength=partitions))}


def resolve_partition(
    part: Part, *, folder: str, progress: str, levels: Sequence[Level], duplicates: bool
) -> dict[str, Any]:
    """Write the code of ROW_REASONS of every row of a partition, KEPT for those that stay.

    Returns how many rows are dropped, by reason.
    """
    candidates = pq.read_table(
        pa.BufferReader(storage.read_bytes(storage.join(progress, _candidates_name(part.index))))
    )
    prints, ranks = _array(candidates["prints"], len(levels)), candidates["rank"].to_numpy()
    dropped = pa.concat_tables([DROPPED.empty_table(), *spill.read(part.pieces)])
    codes = np.full(len(ranks), NOT_DROPPED, np.uint8)
    for number, level in enumerate(levels):
        first = fingerprint.representatives(prints[:, number], ranks)
        said = np.full(len(ranks), NOT_DROPPED, np.uint8)
        of_level = dropped.filter(pa.compute.equal(dropped["level"], number))
        np.minimum.at(said, of_level["row"].to_numpy(), of_level["code"].to_numpy())
        of_rows = said[first]
        if duplicates:
            repeats = first != np.arange(len(first))
            of_rows[repeats] = np.minimum(of_rows[repeats], rules.ROW[level.reason])
        codes = np.minimum(codes, of_rows)
    result = np.zeros(part.rows, np.uint8)
    result[candidates["row"].to_numpy()] = np.where(codes == NOT_DROPPED, rules.KEPT, codes)
    intermediate.write_array(folder, matching.dropped_name(part.index), result)
    return dict(Counter(rules.ROW_REASONS[code] for code in result[result != rules.KEPT]))


def _candidates_name(index: int) -> str:
    return f"candidates-{index:06d}.parquet"


def _prints(data: bytes, levels: Sequence[Level]) -> np.ndarray | None:
    """Fingerprints of an image, uint64 [levels, 4]; None for one that nothing can decode."""
    try:
        return np.array([FINGERPRINTS[level.reason](data) for level in levels])
    except UnusableImageError:  # sharding drops and names it
        return None


FINGERPRINTS = {"duplicate": fingerprint.exact, "near_duplicate": fingerprint.perceptual}


def scatter(
    uri: str, partition: int, prints: np.ndarray, ranks: np.ndarray, levels: Sequence[Level], bins: int
) -> dict[str, Any]:
    """Write records by bin, one for all rows of a partition that share a fingerprint: however often an image repeats,
    its bin gets it once from each partition."""
    parts = list(_records(partition, prints, ranks, levels))
    table = pa.concat_tables([RECORD.empty_table(), *parts])
    where = (table["key"].to_numpy() % np.uint64(bins)).astype(np.int64)
    sizes = spill.write(uri, table, np.argsort(where, kind="stable"), np.bincount(where, minlength=bins))
    return {"bytes": sizes}


def _records(partition: int, prints: np.ndarray, ranks: np.ndarray, levels: Sequence[Level]) -> Iterator[pa.Table]:
    for number, level in enumerate(levels):
        first = np.unique(fingerprint.representatives(prints[:, number], ranks))
        keys = fingerprint.keys(prints[first, number], level.masks)
        rows = np.repeat(first, keys.shape[1])
        columns = {
            "key": keys.ravel(),
            "level": np.full(len(rows), number, np.uint8),
            "fingerprint": _binary(prints[rows, number]),
            "rank": ranks[rows],
            "partition": np.full(len(rows), partition, np.int32),
            "row": rows.astype(np.int32),
        }
        yield pa.table(columns, schema=RECORD)


def _duplicates(records: pa.Table, number: int, level: Level, duplicates: bool) -> np.ndarray:
    """(partition, row, level, code of ROW_REASONS) of the records that are dropped, int64 [L, 4]."""
    key, rank, partition, row = (records[name].to_numpy() for name in ("key", "rank", "partition", "row"))
    order = np.lexsort((row, partition, rank, partition != EVALUATION, key))
    key, partition, row = key[order], partition[order], row[order]
    starts = np.append(np.flatnonzero(np.append(True, key[1:] != key[:-1])[: len(key)]), len(key))
    ends = starts[1:]
    if not duplicates:
        shown = np.append(0, np.cumsum(partition == EVALUATION))
        ends = starts[:-1] + shown[ends] - shown[starts[:-1]]
    won = fingerprint.winners(_array(records["fingerprint"], 1)[order, 0], starts, ends, level.distance)
    dropped = np.flatnonzero((won >= 0) & (partition != EVALUATION))
    code = np.where(partition[won[dropped]] == EVALUATION, rules.ROW["evaluation"], rules.ROW[level.reason])
    return np.stack([partition[dropped], row[dropped], np.full(len(dropped), number), code], axis=1).astype(np.int64)


def _no_prints(levels: Sequence[Level]) -> np.ndarray:
    return np.zeros((0, len(levels), fingerprint.WORDS), np.uint64)


def _binary(prints: np.ndarray) -> pa.Array:
    """Fingerprints of a row one after another, as fixed-size binary."""
    width = int(np.prod(prints.shape[1:])) * 8
    return pa.FixedSizeBinaryArray.from_buffers(
        pa.binary(width), len(prints), [None, pa.py_buffer(np.ascontiguousarray(prints).tobytes())]
    )


def _array(prints: pa.ChunkedArray, levels: int) -> np.ndarray:
    """uint64 [N, levels, 4] of what `_binary` made."""
    values = whole(prints)
    width = levels * fingerprint.WORDS
    words = np.frombuffer(values.buffers()[1], np.uint64) if len(values) else np.zeros(0, np.uint64)
    return words.reshape(-1, width)[values.offset : values.offset + len(values)].reshape(-1, levels, fingerprint.WORDS)
