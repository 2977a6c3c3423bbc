"""Files and folders named by a URI: a local path or `s3://bucket/key`.

Writes are atomic: a reader sees the old file, the new one, or none.
"""

import json
import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import fsspec
from fsspec.core import url_to_fs


def is_local(uri: str) -> bool:
    return "://" not in uri or uri.startswith("file://")


def join(uri: str, *parts: str) -> str:
    return "/".join([uri.rstrip("/"), *parts])


def beside(uri: str, name: str) -> str:
    """`name` in the folder that holds `uri`."""
    return "/".join([uri.rstrip("/").rpartition("/")[0], name])


def absolute(uri: str) -> str:
    """The same place for a process that runs in another folder."""
    return str(Path(uri.removeprefix("file://")).absolute()) if is_local(uri) else uri


def filesystem(uri: str) -> tuple[fsspec.AbstractFileSystem, str]:
    """The file system of a URI and the path inside it."""
    return url_to_fs(uri)


def exists(uri: str) -> bool:
    fs, path = filesystem(uri)
    fs.invalidate_cache()
    return bool(fs.exists(path))


def listing(uri: str, suffix: str = "") -> list[str]:
    """Sorted URIs of the files at any depth under a folder whose names end with `suffix`; empty without the folder."""
    fs, path = filesystem(uri)
    fs.invalidate_cache()
    found = sorted(p for p in fs.find(path) if p.endswith(suffix)) if fs.exists(path) else []
    return [p if is_local(uri) else fs.unstrip_protocol(p) for p in found]


def sizes(uri: str) -> dict[str, int]:
    """Bytes of the files at any depth under a folder, by path inside it, sorted; empty without the folder."""
    fs, path = filesystem(uri)
    fs.invalidate_cache()
    found = fs.find(path, detail=True) if fs.exists(path) else {}
    return {name.removeprefix(path).lstrip("/"): int(info["size"]) for name, info in sorted(found.items())}


def remove(uri: str) -> None:
    """Remove a file or a whole folder; nothing happens where there is none."""
    fs, path = filesystem(uri)
    fs.invalidate_cache()
    if fs.exists(path):
        fs.rm(path, recursive=True)


@contextmanager
def opened(uri: str) -> Iterator[IO[bytes]]:
    """A file to read from, at any position."""
    fs, path = filesystem(uri)
    with fs.open(path, "rb") as file:
        yield file


def read_bytes(uri: str) -> bytes:
    fs, path = filesystem(uri)
    return bytes(fs.cat_file(path))


@contextmanager
def atomic_writer(uri: str) -> Iterator[IO[bytes]]:
    """A binary file that appears under its name only when the block ends without an error."""
    fs, path = filesystem(uri)
    if not is_local(
        uri
    ):  # an object store shows an object only once its upload is complete; an error must abort the upload
        file = fs.open(path, "wb", autocommit=False)
        try:
            yield file
        except BaseException:
            file.discard()
            raise
        file.close()
        file.commit()
        return
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f"{target.name}.{uuid.uuid4().hex[:8]}.tmp")
    try:
        with temporary.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)


def write_bytes(uri: str, content: bytes) -> None:
    with atomic_writer(uri) as file:
        file.write(content)


def read_json(uri: str) -> Any:
    return json.loads(read_bytes(uri))


def write_json(uri: str, value: Any) -> None:
    write_bytes(uri, to_json(value))


def to_json(value: Any) -> bytes:
    return (json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False) + "\n").encode()
