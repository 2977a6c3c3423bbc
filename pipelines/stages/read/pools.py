"""A pool of images with captions, whatever its format, as tables of one shape.

| format | recognised by |
| --- | --- |
| Parquet | `.parquet` files with the columns of `pipelines.schema`; links: `url` instead of `image` |
| WebDataset | `.tar` files of `.jpg/.jpeg/.png/.webp` members beside `.txt` or `.json` ones of the same name |
| list | one `.csv` or `.jsonl` file of paths and captions |
| folder | images beside `.txt` files of the same name, a caption a line |
"""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import pyarrow as pa
import pyarrow.compute as pc

from llip import storage
from pipelines import schema
from pipelines.stages.read import files, listing, parquet, webdataset
from pipelines.stages.work import Unit

SEVERAL = "several"
"""Format of pools that are read together."""
READERS = {"parquet": parquet, "webdataset": webdataset, "list": listing, "folder": listing}
SUFFIXES = {".parquet": "parquet", ".tar": "webdataset", ".csv": "list", ".jsonl": "list"}


class Reader(Protocol):
    """What a module that reads one format offers."""

    NOUN: str
    """What `Unit.size` counts."""

    def plan(self, files: Sequence[tuple[str, str]], unit_rows: int) -> tuple[list[Unit], pa.Schema]:
        """Units of files given as (URI, path inside the pool), and the columns of their rows."""

    def tables(self, unit: Unit, columns: Sequence[str]) -> Iterator[pa.Table]:
        """Rows of a unit, in order, with these columns or more."""


@dataclass(frozen=True, kw_only=True)
class Pool:
    """What a pool holds, checked before any work starts."""

    uri: str
    format: str
    units: tuple[Unit, ...]
    """Pieces that are read, matched and written one by one."""
    columns: pa.Schema
    """Of its rows, as `schema.with_extras` puts them."""
    noun: str
    """What the units' sizes count."""
    digest: str
    """Identity of the pool, see `files.identity`."""

    @property
    def extras(self) -> pa.Schema:
        """Columns that are carried along."""
        return pa.schema([field for field in self.columns if field.name not in schema.REQUIRED])

    @property
    def pictures(self) -> bool:
        """Whether rows bring their pictures; links do not."""
        return schema.IMAGE in self.columns.names


def open_pool(uri: str, *, unit_rows: int) -> Pool:
    """Find the files of a pool and check their columns.

    Raises ValueError where nothing can be read: no such place, an unreachable bucket, no file of a known format,
    several formats, a missing or mistyped column, no rows; the message names the file and the column.
    """
    found = files.find(uri)
    names = [f.name for f in found]
    if (kind := files.format_of(uri, names, SUFFIXES)) is None:
        if not any(name.lower().endswith(listing.IMAGES) for name in names):
            raise ValueError(
                f"{uri} holds none of .parquet, .tar, .csv, .jsonl or image files; it has {', '.join(names[:3])}"
            )
        kind = "folder"
    chosen = [(f.uri, f.name) for f in found if kind == "folder" or SUFFIXES.get(files.suffix(f.name)) == kind]
    units, columns = READERS[kind].plan(chosen, unit_rows)
    if not units:
        raise ValueError(f"{uri} holds no rows: there is nothing to curate")
    noun, digest = READERS[kind].NOUN, files.identity(found)
    return Pool(uri=uri, format=kind, units=tuple(units), columns=columns, noun=noun, digest=digest)


def open_pools(uris: Sequence[str], *, unit_rows: int) -> Pool:
    """Several pools as one: ids begin with the name of their pool, which a column keeps; columns that all pools have
    are carried along.

    uris: `name=URI`, or a URI whose last part is the name. Raises ValueError, besides what `open_pool` raises, for a
    name that repeats, and for links beside pictures.
    """
    if len(uris) == 1:
        return open_pool(storage.absolute(uris[0]), unit_rows=unit_rows)
    names = [pool_name(uri) for uri in uris]
    if repeated := sorted({name for name in names if names.count(name) > 1}):
        raise ValueError(f"--pool: {repeated[0]!r} names several pools; write name=URI to tell them apart")
    given = [uri.removeprefix(f"{name}=") for name, uri in zip(names, uris, strict=True)]
    pools = [open_pool(storage.absolute(uri), unit_rows=unit_rows) for uri in given]
    if len({pool.pictures for pool in pools}) > 1:
        links = next(pool.uri for pool in pools if not pool.pictures)
        raise ValueError(f"--pool: {links} has links, others have pictures; pipelines/fetch.py fetches those of links")
    parts = [
        replace(unit, pool=name, format=pool.format)
        for name, pool in zip(names, pools, strict=True)
        for unit in pool.units
    ]
    pool_column = pa.field(schema.POOL, pa.string())
    shared = [field for field in pools[0].extras if all(field in pool.extras for pool in pools)]
    lines = [f"{name}\t{pool.digest}" for name, pool in zip(names, pools, strict=True)]
    return Pool(
        uri=", ".join(pool.uri for pool in pools),
        format=SEVERAL,
        units=tuple(replace(unit, index=i) for i, unit in enumerate(parts)),
        columns=schema.with_extras(
            [pool_column, *(f for f in shared if f.name != schema.POOL)], pictures=pools[0].pictures
        ),
        noun=" and ".join(sorted({pool.noun for pool in pools})),
        digest=hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16],
    )


def pool_name(uri: str) -> str:
    """The name that a user gives a pool, or else the last part of its URI."""
    name, found, _ = uri.partition("=")
    return name if found and "/" not in name else uri.rstrip("/").rpartition("/")[2]


def tables(pool_format: str, unit: Unit, columns: Sequence[str]) -> Iterator[pa.Table]:
    """The rows of a unit in order, a few hundred or thousand a table, with these columns of the pool's (an image that
    cannot be read is null). What is not asked for costs nothing."""
    if pool_format != SEVERAL:
        for table in READERS[pool_format].tables(unit, columns):
            yield table.select(columns)
        return
    for table in READERS[unit.format].tables(unit, [name for name in columns if name != schema.POOL]):
        found = {name: table[name] for name in table.column_names}
        if schema.ID in columns:
            found[schema.ID] = pc.binary_join_element_wise(unit.pool, table[schema.ID], "/")
        if schema.POOL in columns:
            found[schema.POOL] = pa.repeat(pa.scalar(unit.pool), table.num_rows)
        yield pa.table(found).select(columns)
