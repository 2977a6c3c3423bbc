"""The files of a pool or a list, and what identifies them."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

from llip import storage
from llip.data import manifest
from pipelines.stages.work import concurrently

TAIL_BYTES = 1 << 16


@dataclass(frozen=True, kw_only=True)
class Found:
    """A file."""

    uri: str
    name: str
    """Path inside the folder that was searched."""
    size: int
    etag: str
    """What an object store names its content by; empty on a disk."""


def find(uri: str) -> list[Found]:
    """Every file of a pool, sorted by path; a manifest and hidden files are none of the pool's."""
    try:
        found = storage.entries(uri)
    except Exception as error:  # whatever the library raises: credentials, name resolution, a refused connection
        raise ValueError(
            f"{uri} cannot be listed ({error}); check its name, the credentials and AWS_ENDPOINT_URL"
        ) from error
    if not found:
        raise ValueError(f"{uri} does not exist or is empty; a folder, a file or an s3:// prefix is needed")
    files = []
    for file, info in found.items():
        inside = storage.inside(uri, file)
        if inside != manifest.NAME and not any(part.startswith((".", "_")) for part in inside.split("/")):
            files.append(Found(uri=file, name=inside, size=int(info["size"]), etag=info.get("ETag", "")))
    return files


def suffix(name: str) -> str:
    return "." + name.rsplit(".", 1)[-1].lower() if "." in name else ""


def format_of(uri: str, names: Sequence[str], suffixes: dict[str, str]) -> str | None:
    """The one format that files have, by the ends of their names; None: a known one has none of them. Raises
    ValueError for several."""
    kinds = sorted({suffixes[suffix(name)] for name in names if suffix(name) in suffixes})
    if len(kinds) > 1:
        raise ValueError(
            f"{uri} mixes {' and '.join(kinds)} files; a pool has one format: name the folder or file of one of them"
        )
    return kinds[0] if kinds else None


def identity(files: Sequence[Found]) -> str:
    """A digest of files: their names, sizes and ETags or, on a disk, what their last 64 KiB hold (the footer of a
    Parquet file). It stays when the files are moved."""
    lines = [f"{f.name}\t{f.size}\t{mark}" for f, mark in zip(files, concurrently(_mark, files), strict=True)]
    return hashlib.sha256("\n".join(sorted(lines)).encode()).hexdigest()[:16]


def _mark(file: Found) -> str:
    if file.etag:
        return file.etag
    with storage.opened(file.uri) as handle:
        handle.seek(max(0, file.size - TAIL_BYTES))
        return hashlib.sha256(handle.read()).hexdigest()
