"""Whether the files of a folder are those that its manifest lists; marks of content without reading all of it."""

import hashlib
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from functools import partial

from llip import storage
from llip.data.manifest import FileEntry, Manifest

_BLOCK = 1 << 20
_MARK_BLOCK, _MARK_BLOCKS = 1 << 16, 16
_THREADS = 8


def check_sizes(folder: str, manifest: Manifest) -> None:
    """One listing of the folder. Raises ValueError for a file that is missing or has another size."""
    found = storage.sizes(folder)
    for entry in manifest.files:
        size = found.get(entry.name)
        uri = storage.join(folder, entry.name)
        if size is None:
            raise ValueError(
                f"{uri} is missing; the manifest of {folder} lists it. Restore it or write the folder again"
            )
        if size != entry.bytes:
            raise ValueError(
                f"{uri} has {size} bytes where the manifest says {entry.bytes}. Restore it or write the folder again"
            )


def check_checksums(folder: str, manifest: Manifest) -> None:
    """Read every file. Raises ValueError for one whose SHA-256 is not that of the manifest."""
    with ThreadPoolExecutor(_THREADS) as pool:
        for _ in pool.map(partial(check_checksum, folder), manifest.files):
            pass


def check_checksum(folder: str, entry: FileEntry) -> None:
    """Read a file. Raises ValueError where its SHA-256 is not that of its entry in the manifest."""
    uri, digest = storage.join(folder, entry.name), hashlib.sha256()
    with storage.opened(uri) as file:
        while block := file.read(_BLOCK):
            digest.update(block)
    if digest.hexdigest() != entry.sha256:
        raise ValueError(
            f"{uri} is damaged: its SHA-256 is {digest.hexdigest()} where the manifest says {entry.sha256}. "
            "Restore it or write the folder again"
        )


def mark(uri: str, size: int, etag: str = "", *, whole: bool = False) -> str:
    """A mark by which a file is told from one of another content.

    In an object store it is the ETag. On a disk it is a digest: of all bytes for small files and with `whole`, else of
    16 blocks, the last one at the end, where Parquet has its footer.
    """
    if etag:
        return etag
    digest = hashlib.sha256()
    with storage.opened(uri) as handle:
        if whole or size <= _MARK_BLOCK * _MARK_BLOCKS:
            while block := handle.read(_MARK_BLOCK):
                digest.update(block)
        else:
            for place in range(_MARK_BLOCKS):
                handle.seek((size - _MARK_BLOCK) * place // (_MARK_BLOCKS - 1))
                digest.update(handle.read(_MARK_BLOCK))
    return digest.hexdigest()


def marks(files: Iterable[tuple[str, int, str]]) -> list[str]:
    """`mark` of many files, each given by its URI, size and ETag."""
    with ThreadPoolExecutor(_THREADS) as pool:
        return list(pool.map(lambda file: mark(*file), files))
