"""A pool of images with captions, whatever its format, as tables of one shape.

| format | recognised by |
| --- | --- |
| Parquet | `.parquet` files with the columns of `pipelines.schema`; links: `url` instead of `image` |
| WebDataset | `.tar` or `.tar.gz` files of `.jpg/.jpeg/.png/.webp` members beside `.txt` or `.json` ones of a name |
| list | `.csv`, `.tsv`, `.jsonl` or `.json` files of paths and captions (also `.gz`) |
| folder | images beside `.txt` files of the same name, a caption a line, or `.json` ones |

Folders named `lang=en` are columns. What is found and not read is counted (`Pool.unread`).
"""

import hashlib
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol
from urllib.parse import unquote

import pyarrow as pa
import pyarrow.compute as pc

from llip import storage
from pipelines import schema
from pipelines.stages.read import fields, files, listing, parquet, records, webdataset
from pipelines.stages.read.files import Found
from pipelines.stages.work import Partition

SEVERAL = "several"
"""Format of pools that are read together."""
READERS = {"parquet": parquet, "webdataset": webdataset, "list": listing, "folder": listing}
SUFFIXES = {
    ".parquet": "parquet",
    ".tar": "webdataset",
    ".csv": "list",
    ".tsv": "list",
    ".jsonl": "list",
    ".json": "list",
    ".txt": "list",
}
WEAK = (".json", ".txt")
"""Endings of files that are lists only where nothing else is there to be read."""
NO_VALUE = "__HIVE_DEFAULT_PARTITION__"


class Reader(Protocol):
    """Functions of a module that reads one format."""

    NOUN: str
    """Noun of what `Partition.size` counts."""

    def plan(
        self, files: Sequence[tuple[str, str]], partition_rows: int, caption_column: str | None, unread: Counter[str]
    ) -> tuple[list[Partition], pa.Schema]:
        """Partitions of files given as (URI, path inside the pool), and the columns of their rows.

        unread: gets what is found and not read, by kind.
        """

    def tables(self, partition: Partition, columns: Sequence[str], unread: Counter[str]) -> Iterator[pa.Table]:
        """Rows of a partition, in order, with these columns or more."""


@dataclass(frozen=True, kw_only=True)
class Pool:
    """A pool, checked before any work starts."""

    uri: str
    format: str
    partitions: tuple[Partition, ...]
    """Pieces that are read, matched and written one by one."""
    columns: pa.Schema
    """Columns of its rows, as `schema.with_extras` puts them."""
    noun: str
    """Noun of what the partitions' sizes count."""
    digest: str
    """Identity of the pool, see `files.identity`."""
    unread: Mapping[str, int] = field(default_factory=dict)
    """Counts of what was found and is not read, by kind; finds of the partitions' reading come on top."""

    @property
    def extras(self) -> pa.Schema:
        """Columns that are carried along."""
        return pa.schema([field for field in self.columns if field.name not in schema.REQUIRED])

    @property
    def has_images(self) -> bool:
        """Whether rows bring their images; links do not."""
        return schema.IMAGE in self.columns.names


def open_pool(uri: str, *, partition_rows: int, caption_column: str | None = None) -> Pool:
    """Find the files of a pool and check their columns.

    Raises ValueError where nothing can be read: no such place, an unreachable bucket, no file of a known format,
    several formats, a missing, mistyped or reserved column, no rows; the message names the file and the column.
    """
    unread = Counter[str]()
    found = files.find(uri, unread)
    kind, chosen = _chosen(uri, found)
    unread.update(f"files {fields.ending(f.name)}" for f in found if f not in chosen)
    if kind == "parquet" and (empty := [f for f in chosen if not f.size]):
        unread["empty files"] += len(empty)
        chosen = [f for f in chosen if f.size]
    partitions, columns = READERS[kind].plan([(f.uri, f.name) for f in chosen], partition_rows, caption_column, unread)
    if not partitions:
        raise ValueError(f"{uri} holds no rows: there is nothing to curate")
    schema.refuse_reserved(columns.names, uri, several=False)
    folders = {partition.name: _folders(partition.name) for partition in partitions}
    by_folder = _folder_columns([*folders.values()], columns)
    return Pool(
        uri=uri,
        format=kind,
        partitions=tuple(
            replace(
                partition,
                columns=pa.schema([*columns, *by_folder]),
                caption_column=caption_column,
                folders=tuple((f.name, folders[partition.name].get(f.name)) for f in by_folder),
            )
            for partition in partitions
        ),
        columns=pa.schema([*columns, *by_folder]),
        noun=READERS[kind].NOUN,
        digest=files.identity(found),
        unread=dict(unread),
    )


def _chosen(uri: str, found: Sequence[Found]) -> tuple[str, list[Found]]:
    """The format of a pool, and its files. Raises ValueError for no format and for several."""
    names = [f.name for f in found]
    kinds = {f.name: SUFFIXES[end] for f in found if (end := files.ending(f.name, SUFFIXES))}
    images = any(name.lower().endswith(records.IMAGES) for name in names)
    strong = {kind for name, kind in kinds.items() if not files.ending(name, WEAK)}
    if strong == {"parquet", "webdataset"} and _stems(names, ".parquet") <= _stems(names, ".tar"):
        strong = {"webdataset"}  # img2dataset leaves a table of what is in a tar beside it
    if len(strong) > 1:
        raise ValueError(
            f"{uri} mixes {' and '.join(sorted(strong))} files; a pool has one format: name the folder or file of one"
            " of them"
        )
    if strong:
        kind = strong.pop()
        if kind != "list":
            return kind, [f for f in found if kinds.get(f.name) == kind]
        return kind, [f for f in found if not files.ending(f.name, WEAK)]
    if images and (listing.has_sidecars(names) or not kinds):
        return "folder", [*found]
    if kinds:
        lists = [f for f in found if f.name in kinds and _is_list(f)]
        if lists:
            return "list", [f for f in found if f in lists or f.name.lower().endswith(records.IMAGES)]
    if images:
        return "folder", [f for f in found if f.name.lower().endswith(records.IMAGES)]
    raise ValueError(
        f"{uri} holds none of .parquet, .tar, .csv, .tsv, .jsonl, .json or image files; it has {', '.join(names[:3])}"
    )


def _is_list(file: Found) -> bool:
    """Whether a text file among images lists them: its first line has several fields, one of them named or a file."""
    if not files.ending(file.name, (".txt",)):
        return True
    with storage.opened(file.uri) as handle:
        first = handle.readline(1 << 16).decode("utf-8", "replace")
    parts = [part.strip().lower() for part in re.split(r"[,\t;|]", first)]
    return len(parts) > 1 and any(p in records.PATHS or records.FILE.fullmatch(p) for p in parts)


def _stems(names: Sequence[str], suffix: str) -> set[str]:
    return {name.removesuffix(suffix) for name in names if name.endswith(suffix)}


def _folders(name: str) -> dict[str, str | None]:
    """Columns that the folders of a file give, as Hive names them."""
    pairs = [match.groups() for part in name.split("/")[:-1] if (match := fields.HIVE.fullmatch(part))]
    return {key: None if value == NO_VALUE else unquote(value) for key, value in pairs}


def _folder_columns(folders: Sequence[Mapping[str, str | None]], columns: pa.Schema) -> list[pa.Field]:
    names = dict.fromkeys(name for of_file in folders for name in of_file)
    names = {n: None for n in names if n not in columns.names and n not in schema.REQUIRED}
    kinds = {name: fields.of_all([of_file.get(name) for of_file in folders]) or pa.string() for name in names}
    schema.refuse_reserved(kinds, "a folder named like a column: the pool", several=False)
    return [pa.field(name, kind) for name, kind in kinds.items()]


def open_pools(uris: Sequence[str], *, partition_rows: int, caption_column: str | None = None) -> Pool:
    """Several pools as one: ids begin with the name of their pool, which a column keeps; columns that all pools have
    are carried along.

    uris: `name=URI`, or a URI whose last part is the name. Raises ValueError, besides what `open_pool` raises, for a
    name that repeats, for a column `pool` and for links beside images.
    """
    if len(uris) == 1:
        return open_pool(storage.absolute(uris[0]), partition_rows=partition_rows, caption_column=caption_column)
    names = [pool_name(uri) for uri in uris]
    if repeated := sorted({name for name in names if names.count(name) > 1}):
        raise ValueError(f"--pool: {repeated[0]!r} names several pools; write name=URI to tell them apart")
    given = [uri.removeprefix(f"{name}=") for name, uri in zip(names, uris, strict=True)]
    pools = [
        open_pool(storage.absolute(uri), partition_rows=partition_rows, caption_column=caption_column) for uri in given
    ]
    for pool in pools:
        schema.refuse_reserved(pool.columns.names, pool.uri, several=True)
    if len({pool.has_images for pool in pools}) > 1:
        links = next(pool.uri for pool in pools if not pool.has_images)
        raise ValueError(f"--pool: {links} has links, others have images; pipelines/fetch.py fetches those of links")
    parts = [
        replace(partition, pool=name, format=pool.format)
        for name, pool in zip(names, pools, strict=True)
        for partition in pool.partitions
    ]
    pool_column = pa.field(schema.POOL, pa.string())
    shared = [field for field in pools[0].extras if all(field in pool.extras for pool in pools)]
    lines = [f"{name}\t{pool.digest}" for name, pool in zip(names, pools, strict=True)]
    return Pool(
        uri=", ".join(pool.uri for pool in pools),
        format=SEVERAL,
        partitions=tuple(replace(partition, index=i) for i, partition in enumerate(parts)),
        columns=schema.with_extras([pool_column, *shared], images=pools[0].has_images),
        noun=" and ".join(sorted({pool.noun for pool in pools})),
        digest=hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16],
        unread=dict(sum((Counter(pool.unread) for pool in pools), Counter[str]())),
    )


def pool_name(uri: str) -> str:
    """The name that a user gives a pool, or else the last part of its URI."""
    name, found, _ = uri.partition("=")
    return name if found and "/" not in name else uri.rstrip("/").rpartition("/")[2]


def tables(
    pool_format: str, partition: Partition, columns: Sequence[str], unread: Counter[str] | None = None
) -> Iterator[pa.Table]:
    """The rows of a partition in order, a few hundred or thousand a table.

    columns: of the pool's, and `schema.REASON`; others are not read. An image that cannot be read is null.
    unread: gets what is found and not read, by kind.
    """
    several = pool_format == SEVERAL
    folders = dict(partition.folders)
    given = [name for name in columns if name not in folders and not (several and name == schema.POOL)]
    reader = READERS[partition.format if several else pool_format]
    for table in reader.tables(partition, given, Counter() if unread is None else unread):
        found = {name: table[name] for name in table.column_names}
        if several and schema.ID in columns:
            found[schema.ID] = pc.binary_join_element_wise(partition.pool, table[schema.ID], "/")
        if several and schema.POOL in columns:
            found[schema.POOL] = pa.repeat(pa.scalar(partition.pool), table.num_rows)
        for name, value in folders.items():
            if name in columns:
                kind = partition.columns.field(name).type
                found[name] = pa.repeat(fields.array([value], kind)[0][0], table.num_rows)
        yield pa.table(found).select(columns)
