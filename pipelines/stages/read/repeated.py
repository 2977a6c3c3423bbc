"""Ids that several rows of a pool have, looked for before any work: sharding would refuse them, hours later."""

from collections.abc import Sequence

import pyarrow as pa
import pyarrow.compute as pc

from llip import storage
from pipelines import schema
from pipelines.stages.read import normalise, parquet
from pipelines.stages.read.pools import Pool
from pipelines.stages.work import concurrently

FILES, IDS = 64, 1 << 20
"""Files that are looked at, and ids in all of them: all ids of a small pool, the first ones of each file of a large
pool. These are enough to find ids that count from 0 in every file, and a file that lies there twice."""


def refuse_repeated_ids(pool: Pool) -> None:
    """Raises ValueError naming an id of a Parquet pool that several rows have, and where. Only Parquet brings ids."""
    files: dict[str, list[str]] = {}
    for part in pool.partitions:
        if (part.format or pool.format) == "parquet" and part.file not in files.setdefault(part.pool, []):
            files[part.pool].append(part.file)
    for of_pool in files.values():  # ids begin with the name of their pool where there are several
        _refuse_repeated(of_pool[:FILES])


def _refuse_repeated(files: Sequence[str]) -> None:
    most = IDS // max(1, len(files))
    parts = concurrently(lambda file: storage.patient(lambda: _first_ids(file, most), file), files)
    if not (counts := pa.chunked_array(parts, pa.string()).value_counts()):
        return
    repeated = counts.field("values").filter(pc.greater(counts.field("counts"), 1)).drop_null()
    if not len(repeated):
        return
    named = repeated[0]
    where = [file for file, ids in zip(files, parts, strict=True) if pc.any(pc.equal(ids, named)).as_py()]
    raise ValueError(
        f"{' and '.join(where[:2])}: the id {named.as_py()!r} names several rows; ids have to be unique (without a "
        f"column {schema.ID!r} rows get unique ones)"
    )


def _first_ids(file: str, most: int) -> pa.Array:
    found: list[pa.Array] = []
    with parquet.opened(file) as opened:
        if schema.ID in opened.schema_arrow.names:
            for batch in opened.iter_batches(most, columns=[schema.ID]):
                found.append(normalise.plain(batch[schema.ID]).cast(pa.string()))
                if sum(map(len, found)) >= most:
                    break
    return pa.concat_arrays(found) if found else pa.array([], pa.string())
