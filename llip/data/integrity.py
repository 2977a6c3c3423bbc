"""Whether the files of a folder are those that its manifest lists."""

import hashlib
from concurrent.futures import ThreadPoolExecutor
from functools import partial

from llip import storage
from llip.data.manifest import FileEntry, Manifest

_BLOCK = 1 << 20
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
