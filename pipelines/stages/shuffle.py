"""A global shuffle in two passes that is a pure function of (seed, ids).

A row's key is a hash of the seed and its id; the order is the order of the keys. *Scatter*: every partition encodes its
rows and writes them in that order, in bins of the key's upper bits. *Gather*: a shard is a range of ranks; it reads the
bins that hold them, one contiguous range of bytes from each partition's file, sorts and cuts. So memory holds a
partition or a shard, and neither partitions nor bins show in the result.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from llip import storage
from pipelines import schema
from pipelines.stages import write
from pipelines.stages.columns import whole
from pipelines.stages.encode import Encoding, encode
from pipelines.stages.hashing import hash64
from pipelines.stages.pixels import UnusableImageError
from pipelines.stages.read import normalise, parquet
from pipelines.stages.work import spill
from pipelines.stages.work.spill import Piece

KEY = f"{schema.RESERVED}key"


@dataclass(frozen=True, kw_only=True)
class Curated:
    """A file of a curated pool."""

    index: int
    file: str
    rows: int


@dataclass(frozen=True, kw_only=True)
class PlannedShard:
    """A file to be gathered: rows `first … first + rows - 1` of the global order."""

    index: int
    rows: int
    skip: int
    """Rows of the bins that come before the shard's first."""
    pieces: tuple[Piece, ...]
    """Position of the shard's bins in each partition's file."""


def scatter_partition(
    partition: Curated, *, folder: str, encoding: Encoding, blur: str | None, seed: int, bits: int
) -> dict[str, Any]:
    """Encode the images of a curated file, blurred where the column `blur` has boxes, and write its rows by bin.
    Returns rows and bytes of each bin and what was dropped."""
    tables, dropped, captions = [], Counter[str](), 0
    with parquet.opened(partition.file) as file:
        for batch in file.iter_batches(normalise.BATCH_ROWS):
            given = pa.Table.from_batches([batch])
            tables.append(_encoded(given, encoding, blur, dropped))
            captions += _captions(given) - _captions(tables[-1])
    table = pa.concat_tables(tables)
    keys = hash64(whole(table[schema.ID]), seed)
    order = np.argsort(keys, kind="stable")
    rows = np.bincount(bin_of(keys, bits), minlength=1 << bits)
    uri = storage.join(folder, spill_name(partition.index))
    sizes = spill.write(uri, table.append_column(KEY, pa.array(keys)), order, rows)
    return {
        "rows": rows.tolist(),
        "bytes": sizes,
        "dropped": dropped,
        "captions_dropped": captions,
        "image_bytes": int(table.nbytes),
    }


def _captions(table: pa.Table) -> int:
    return int(pa.compute.sum(pa.compute.list_value_length(table[schema.CAPTIONS])).as_py() or 0)


def bin_of(keys: np.ndarray, bits: int) -> np.ndarray:
    return (keys >> np.uint64(64 - bits)).astype(np.int64) if bits else np.zeros(len(keys), np.int64)


def spill_name(index: int) -> str:
    return f"spill/{index:06d}.arrows"


def shard_name(index: int) -> str:
    return f"shard-{index:06d}.parquet"


def plan(folder: str, results: Sequence[dict[str, Any]], sizes: Sequence[int]) -> list[PlannedShard]:
    """Byte ranges of each shard. results: those of `scatter_partition`; sizes: rows of each shard, in order."""
    rows = np.array([r["rows"] for r in results]).sum(axis=0)
    bin_ends = np.cumsum(rows)
    files = [storage.join(folder, spill_name(partition)) for partition in range(len(results))]
    ends = spill.ends([r["bytes"] for r in results])
    shards = []
    for index, (end, size) in enumerate(zip(np.cumsum(sizes), sizes, strict=True)):
        first = int(np.searchsorted(bin_ends, end - size, side="right"))
        last = int(np.searchsorted(bin_ends, end, side="left"))
        pieces = spill.pieces(files, ends, first, last)
        skip = int(end - size - (bin_ends[first] - rows[first]))
        shards.append(PlannedShard(index=index, rows=size, skip=skip, pieces=pieces))
    return shards


def gather_shard(shard: PlannedShard, *, folder: str, columns: pa.Schema, row_group_size: int) -> dict[str, Any]:
    """Write a shard. Returns its file entry."""
    table = pa.concat_tables(spill.read(shard.pieces))
    table = table.sort_by([(KEY, "ascending"), (schema.ID, "ascending")])
    _refuse_repeated_ids(table[schema.ID])
    table = table.slice(shard.skip, shard.rows).select(columns.names)
    assert table.num_rows == shard.rows, f"{table.num_rows} rows found for a shard of {shard.rows}"
    with write.parquet_file(folder, shard_name(shard.index), columns) as file:
        file.write(table, row_group_size)
    return asdict(file.entry)


def _encoded(table: pa.Table, encoding: Encoding, blur: str | None, dropped: Counter[str]) -> pa.Table:
    images, rows = [], []
    boxes = table[blur].to_pylist() if blur else [()] * table.num_rows
    for i, data in enumerate(table[schema.IMAGE]):
        try:
            images.append(encode(data.as_py(), encoding, boxes[i] or ()))
            rows.append(i)
        except UnusableImageError as error:
            dropped[str(error)] += 1
    at = table.column_names.index(schema.IMAGE)
    return table.take(pa.array(rows, pa.int64())).set_column(at, schema.IMAGE, pa.array(images, pa.binary()))


def _refuse_repeated_ids(ids: pa.ChunkedArray) -> None:
    values = whole(ids)
    same = np.flatnonzero(pa.compute.equal(values[1:], values[:-1]).to_numpy(zero_copy_only=False))
    if len(same):
        raise ValueError(
            f"the id {values[int(same[0])].as_py()!r} names several rows; ids have to be unique"
            " (without a column 'id' the pool gets unique ones)"
        )
