"""The files of a pool or a list, and what identifies them."""

import hashlib
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from llip import storage
from llip.data import integrity, manifest
from pipelines.stages.work import concurrently

TEXTS = (".txt", ".csv", ".tsv", ".jsonl", ".json")


@dataclass(frozen=True, kw_only=True)
class Found:
    """A file."""

    uri: str
    name: str
    """Path inside the folder that was searched."""
    size: int
    etag: str
    """ETag of an object store; empty on a disk."""


def find(uri: str, unread: Counter[str] | None = None) -> list[Found]:
    """Every file of a pool, sorted by path. A manifest is none of the pool's, nor are hidden files (a part of their
    path begins with a dot or an underscore), which are added to `unread`."""
    try:
        found = storage.entries(uri)
    except Exception as error:  # whatever the library raises: credentials, name resolution, a refused connection
        raise ValueError(
            f"{uri} cannot be listed ({error}); check its name, the credentials and AWS_ENDPOINT_URL"
        ) from error
    if not found:
        raise ValueError(f"{uri} does not exist or is empty; a folder, a file or an s3:// prefix is needed")
    files = []
    unread = Counter() if unread is None else unread
    for file, info in found.items():
        inside = storage.inside(uri, file)
        if any(part.startswith((".", "_")) for part in inside.split("/")):
            unread["hidden files"] += 1
        elif inside != manifest.NAME and not file.endswith("/"):
            files.append(Found(uri=file, name=inside, size=int(info["size"]), etag=info.get("ETag", "")))
    return files


def suffix(name: str) -> str:
    return "." + name.rsplit(".", 1)[-1].lower() if "." in name else ""


def of_format(
    uri: str, found: Sequence[Found], suffixes: Mapping[str, str], weak: Sequence[str]
) -> tuple[str, list[Found]]:
    """The one format that files have, by the ends of their names, and the files of it; those of `weak` suffixes count
    where there are no others. Raises ValueError for none and for several."""
    known = [f for f in found if ending(f.name, suffixes)]
    chosen = [f for f in known if not ending(f.name, weak)] or known
    kinds = sorted({suffixes[str(ending(f.name, suffixes))] for f in chosen})
    if not kinds:
        raise ValueError(f"{uri} holds none of the formats that are read: {', '.join(suffixes)}")
    if len(kinds) > 1:
        raise ValueError(
            f"{uri} mixes {' and '.join(kinds)} files; a pool has one format: name the folder or file of one of them"
        )
    return kinds[0], chosen


def ending(name: str, suffixes: Iterable[str]) -> str | None:
    """The one of some suffixes that a name has, compressed or not."""
    lower = name.lower().removesuffix(".gz")
    lower = lower.removesuffix(".tgz") + ".tar" if lower.endswith(".tgz") else lower
    return next((suffix for suffix in suffixes if lower.endswith(suffix)), None)


def identity(files: Sequence[Found]) -> str:
    """A digest of files: their names, sizes and marks (`integrity.mark`), of texts their whole content. It stays when
    the files are moved."""
    lines = [f"{f.name}\t{f.size}\t{mark}" for f, mark in zip(files, concurrently(_mark, files), strict=True)]
    return hashlib.sha256("\n".join(sorted(lines)).encode("utf-8", "surrogateescape")).hexdigest()[:16]


def _mark(file: Found) -> str:
    return integrity.mark(file.uri, file.size, file.etag, whole=ending(file.name, TEXTS) is not None)
