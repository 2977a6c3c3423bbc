"""A pool of images with captions, whatever its format, as tables of one shape.

| format | recognised by |
| --- | --- |
| Parquet | `.parquet` files with the columns of `pipelines.schema` |
| WebDataset | `.tar` files of `.jpg/.jpeg/.png/.webp` members beside `.txt` or `.json` ones of the same name |
| list | one `.csv` or `.jsonl` file of paths and captions |
| folder | images beside `.txt` files of the same name, a caption a line |
"""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import pyarrow as pa

from llip import storage
from llip.data import manifest
from pipelines import schema
from pipelines.stages import read_listing, read_parquet, read_webdataset
from pipelines.stages.units import Unit

READERS = {"parquet": read_parquet, "webdataset": read_webdataset, "list": read_listing, "folder": read_listing}
SUFFIXES = {".parquet": "parquet", ".tar": "webdataset", ".csv": "list", ".jsonl": "list"}


class Reader(Protocol):
    """What a module that reads one format offers."""

    NOUN: str
    """What `Unit.size` counts."""

    def plan(self, files: Sequence[tuple[str, str]], unit_rows: int) -> tuple[list[Unit], pa.Schema]:
        """Units and carried columns of files given as (URI, path inside the pool)."""

    def tables(self, unit: Unit, extras: Sequence[str], *, images: bool) -> Iterator[pa.Table]:
        """Rows of a unit, in order."""


@dataclass(frozen=True, kw_only=True)
class Pool:
    """What a pool holds, checked before any work starts."""

    uri: str
    format: str
    units: tuple[Unit, ...]
    """Pieces that are read, matched and written one by one."""
    extras: pa.Schema
    """Columns that are carried along."""
    noun: str
    """What the units' sizes count."""
    digest: str
    """Identity of the pool: its files' names and sizes."""


def open_pool(uri: str, *, unit_rows: int) -> Pool:
    """Find the files of a pool and check their columns.

    Raises ValueError where nothing can be read: no such place, an unreachable bucket, no file of a known format,
    several formats, a missing or mistyped column, no rows; the message names the file and the column.
    """
    files = _files(uri)
    kind = _format(uri, [name for _, name, _ in files])
    chosen = [(file, name) for file, name, _ in files if kind == "folder" or SUFFIXES.get(_suffix(name)) == kind]
    units, extras = READERS[kind].plan(chosen, unit_rows)
    if not units:
        raise ValueError(f"{uri} holds no rows: there is nothing to curate")
    lines = sorted(f"{name}\t{size}" for _, name, size in files)
    digest = hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16]
    return Pool(uri=uri, format=kind, units=tuple(units), extras=extras, noun=READERS[kind].NOUN, digest=digest)


def tables(pool_format: str, unit: Unit, extras: Sequence[str], *, images: bool) -> Iterator[pa.Table]:
    """The rows of a unit in order, a few hundred a table: id, captions, `extras` and, where asked for, the encoded
    image (null: unreadable)."""
    names = [schema.ID, *([schema.IMAGE] if images else []), schema.CAPTIONS, *extras]
    for table in READERS[pool_format].tables(unit, extras, images=images):
        yield table.select(names)


def _suffix(name: str) -> str:
    return "." + name.rsplit(".", 1)[-1].lower() if "." in name else ""


def _files(uri: str) -> list[tuple[str, str, int]]:
    """(URI, path inside the pool, bytes) of every file, sorted by path; a manifest and hidden files are none of the
    pool's."""
    try:
        fs, path = storage.filesystem(uri)
        fs.invalidate_cache()
        found = fs.find(path, detail=True)
    except (
        Exception
    ) as error:  # whatever the storage library raises: credentials, name resolution, a refused connection
        raise ValueError(
            f"{uri} cannot be listed ({error}); check its name, the credentials and AWS_ENDPOINT_URL"
        ) from error
    if not found:
        raise ValueError(
            f"{uri} does not exist or is empty; --pool is a folder, file or s3:// prefix of images with captions"
        )
    files = []
    for name, info in sorted(found.items()):
        inside = name.removeprefix(path).lstrip("/") or name.rsplit("/", 1)[-1]
        if inside != manifest.NAME and not any(part.startswith((".", "_")) for part in inside.split("/")):
            files.append((name if storage.is_local(uri) else fs.unstrip_protocol(name), inside, int(info["size"])))
    return files


def _format(uri: str, names: Sequence[str]) -> str:
    kinds = sorted({SUFFIXES[_suffix(name)] for name in names if _suffix(name) in SUFFIXES})
    if len(kinds) > 1:
        raise ValueError(
            f"{uri} mixes {' and '.join(kinds)} files; a pool has one format: name the folder or file of one of them"
        )
    if kinds:
        return kinds[0]
    if any(name.lower().endswith(read_listing.IMAGES) for name in names):
        return "folder"
    raise ValueError(f"{uri} holds none of .parquet, .tar, .csv, .jsonl or image files; it has {', '.join(names[:3])}")
