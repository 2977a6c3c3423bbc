"""Files and folders named by a URI: a local path or `s3://bucket/key`. A URI is a name, never a pattern: `*`, `?`, `[`,
`~`, `#`, `%`, `::` and spaces are letters of it.

Writes are atomic: a reader sees the old file, the new one, or none.
"""

import errno
import json
import logging
import os
import re
import shutil
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, TypeVar
from urllib.parse import quote

from botocore.exceptions import BotoCoreError, NoCredentialsError

if TYPE_CHECKING:
    from fsspec import AbstractFileSystem

logger = logging.getLogger(__name__)

Result = TypeVar("Result")
Uri = str | os.PathLike[str]
SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://")
VERSION = "?versionId="
"""Start of what s3fs takes for a version in a name: an operation on such a name would meet another file."""
BLOCK = 1 << 24
"""Bytes that are read or written at once."""
_THREADS = 16
"""Requests in flight."""


FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)
"""Errors that only writing has."""


FAILURES = (OSError, BotoCoreError)
"""Errors of reading and writing where the system or a service fails: no file, no rights, no space, no answer."""


LASTING = (
    *FULL,
    errno.ENOENT,
    errno.EACCES,
    errno.EPERM,
    errno.EEXIST,
    errno.EISDIR,
    errno.ENOTDIR,
    errno.ENAMETOOLONG,
)
"""Errors that waiting does not cure."""


DELAYS = (1.0, 2.0, 4.0, 8.0, 15.0, 30.0)
"""Seconds between tries: an outage of a minute is outlasted."""


class PlaceError(OSError, ValueError):
    """A place that cannot be written: the user's to mend, and no fault of what was read."""

    def __str__(self) -> str:
        return str(self.strerror)


class TooLargeError(ValueError):
    """A file that is not read for its size."""


def patient(action: Callable[[], Result], what: str) -> Result:
    """The result of `action`, tried again with growing DELAYS where a storage fails; raises what the last try raised.

    Failures that waiting does not cure are raised at once.
    """
    for delay in DELAYS:
        try:
            return action()
        except FAILURES as error:
            if not is_transient(error):
                raise
            logger.warning("%s failed (%s); it is tried again in %g s", what, error, delay)
        time.sleep(delay)
    return action()


def is_transient(error: Exception) -> bool:
    """Whether a storage failed in a way that may pass: not for want of a file, of rights or of space, nor because of
    what it holds, of which libraries complain by an OSError without a code."""
    if isinstance(error, BotoCoreError | ConnectionError | TimeoutError):
        return not isinstance(error, NoCredentialsError)
    return isinstance(error, OSError) and error.errno is not None and error.errno not in LASTING


def is_local(uri: Uri) -> bool:
    scheme = SCHEME.match(os.fspath(uri))
    return scheme is None or scheme[1] == "file"


def join(uri: Uri, *parts: str) -> str:
    return "/".join([os.fspath(uri).rstrip("/"), *parts])


def beside(uri: Uri, name: str) -> str:
    """`name` in the folder that holds `uri`."""
    return "/".join([os.fspath(uri).rstrip("/").rpartition("/")[0], name])


def absolute(uri: Uri) -> str:
    """The same place for a process that runs in another folder."""
    return str(Path(os.fspath(uri).removeprefix("file://")).absolute()) if is_local(uri) else os.fspath(uri)


def quoted(uri: Uri) -> str:
    """The URI for Arrow and Ray, which read `?`, `#`, `%` and others of a remote one as URLs have them."""
    if is_local(uri):
        return absolute(uri)
    scheme, _, path = os.fspath(uri).partition("://")
    return f"{scheme}://{quote(path)}"


def filesystem(uri: Uri) -> tuple["AbstractFileSystem", str]:
    """The file system of a URI and the path inside it.

    The path must not go to methods that expand patterns: `rm`, `glob`, `expand_path`, `copy`. Raises ValueError for a
    scheme that no installed library serves.
    """
    from fsspec.core import url_to_fs  # loads slowly, and a command that only prints its help needs no file
    from fsspec.implementations.local import LocalFileSystem

    if is_local(uri):
        return LocalFileSystem(), absolute(uri)
    scheme, _, place = os.fspath(uri).partition("://")
    root, _, path = place.partition("/")
    if VERSION in path:
        raise ValueError(f"{uri}: {VERSION!r} in a name means a version of an object; name the object")
    try:
        fs, top = url_to_fs(f"{scheme}://{root}")  # of the whole URI it would split a name at `::`
    except (ValueError, ImportError) as error:
        raise ValueError(f"{uri} cannot be opened ({error}); a path or an s3:// URI is needed") from error
    return fs, f"{top.rstrip('/')}/{path.strip('/')}" if path.strip("/") else top


def exists(uri: Uri) -> bool:
    fs, path = filesystem(uri)
    fs.invalidate_cache()
    return bool(fs.exists(path))


def is_folder(uri: Uri) -> bool:
    fs, path = filesystem(uri)
    fs.invalidate_cache()
    return bool(fs.isdir(path))


def entries(uri: Uri) -> dict[str, dict[str, Any]]:
    """Files at any depth under a folder, or the file itself, by sorted URI, with the file system's `size` and, in an
    object store, `ETag`. Empty where there is nothing."""
    fs, path = filesystem(uri)
    fs.invalidate_cache()
    found = fs.find(path, detail=True) if fs.exists(path) else {}
    return {name if is_local(uri) else fs.unstrip_protocol(name): info for name, info in sorted(found.items())}


def inside(uri: Uri, file: str) -> str:
    """Path inside a folder of a file that `entries` or `listing` found; the file's name where `uri` is the file."""
    fs, path = filesystem(uri)
    folder = path if is_local(uri) else fs.unstrip_protocol(path)
    return file.removeprefix(folder).lstrip("/") or file.rpartition("/")[2]


def listing(uri: Uri, suffix: str = "") -> list[str]:
    """Sorted URIs of the files at any depth under a folder whose names end with `suffix`; empty without the folder."""
    return [file for file in entries(uri) if file.endswith(suffix)]


def sizes(uri: Uri) -> dict[str, int]:
    """Bytes of the files at any depth under a folder, by path inside it, sorted; empty without the folder."""
    return {inside(uri, file): int(info["size"]) for file, info in entries(uri).items()}


def remove(uri: Uri) -> None:
    """Remove a file or a whole folder, a symbolic link without its target. Nothing happens where there is none."""
    fs, path = filesystem(uri)
    if is_local(uri):
        target = Path(path)
        if target.is_dir() and not target.is_symlink():
            shutil.rmtree(target)
        else:
            target.unlink(missing_ok=True)
        return
    fs.invalidate_cache()
    if not fs.exists(path):
        return
    named = fs.info(path)["type"] == "file"  # an object may have the name of a folder, which `find` would then hide
    found = fs.find(path, detail=True, withdirs=True)
    files = {name for name, info in found.items() if info["type"] != "directory" or name.endswith("/")}
    with ThreadPoolExecutor(_THREADS) as pool:  # `fs.rm` would take a name for a pattern
        list(pool.map(fs.rm_file, files | {path} if named else files))
    fs.invalidate_cache()
    if fs.exists(path):  # where folders are more than parts of names, they stay
        for folder in sorted({path, *found} - files, reverse=True):
            fs.rmdir(folder)


@contextmanager
def opened(uri: Uri) -> Iterator[IO[bytes]]:
    """A file to read from, at any position."""
    fs, path = filesystem(uri)
    with fs.open(path, "rb") as file:
        yield file


def read_bytes(uri: Uri, most: int | None = None) -> bytes:
    """The content of a file. Raises TooLargeError, before it is read, where it has more bytes than `most`."""
    fs, path = filesystem(uri)
    if most is not None and (size := fs.info(path)["size"]) > most:
        raise TooLargeError(f"{uri} has {size:,} bytes; at most {most:,} are read")
    return bytes(fs.cat_file(path))


@contextmanager
def atomic_writer(uri: Uri) -> Iterator[IO[bytes]]:
    """A binary file that appears under its name only when the block ends without an error. Raises PlaceError where it
    cannot be written."""
    with _writes(uri):
        fs, path = filesystem(uri)
    if not is_local(uri):
        # an object store shows an object only once its upload is complete; an error must abort the upload
        with _writes(uri):
            file = fs.open(path, "wb", autocommit=False)
        try:
            yield file
        except BaseException:
            file.discard()
            raise
        with _writes(uri):
            file.close()
            file.commit()
        return
    target = Path(path)
    with _writes(uri):
        target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f"{target.name}.{uuid.uuid4().hex[:8]}.tmp")
    try:
        with _writes(uri):
            file = temporary.open("wb")
        with _writes(uri, FULL), file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        with _writes(uri):
            temporary.replace(target)
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


@contextmanager
def _writes(uri: Uri, codes: Sequence[int] = ()) -> Iterator[None]:
    """Raise PlaceError for the system's errors, or for some codes alone: while a file is filled, others are about what
    is read."""
    try:
        yield
    except FAILURES as error:
        code = getattr(error, "errno", None)
        if (codes and code not in codes) or isinstance(error, PlaceError):
            raise
        reason = getattr(error, "strerror", None) or str(error)
        raise PlaceError(code or errno.EIO, f"{uri} cannot be written ({reason})") from error


def write_bytes(uri: Uri, content: bytes) -> None:
    write_pieces(uri, [memoryview(content)])


def write_pieces(uri: Uri, pieces: Iterable[memoryview], seen: Callable[[memoryview], object] = len) -> None:
    """Write pieces of memory one after the other, without a copy of all. `seen` gets what is written, beside the
    writing: to take a hash of it."""
    with atomic_writer(uri) as file, ThreadPoolExecutor(1) as beside:
        for piece in pieces:
            for start in range(0, len(piece), BLOCK):
                block = piece[start : start + BLOCK]
                told = beside.submit(seen, block)
                file.write(block)
                told.result()


def read_json(uri: Uri) -> Any:
    """The value of a JSON file. Raises ValueError naming it where it is none."""
    try:
        return json.loads(read_bytes(uri))
    except ValueError as error:
        raise ValueError(f"{uri} cannot be read as JSON ({error})") from error


def write_json(uri: Uri, value: Any) -> None:
    write_bytes(uri, to_json(value))


def to_json(value: Any) -> bytes:
    return (json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False) + "\n").encode()
