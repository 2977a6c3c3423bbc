"""WebDataset tars from shards: members that share a name up to its first dot are one row."""

import io
import json
import tarfile
from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

import pyarrow.parquet as pq

from llip import storage
from llip.data import integrity
from llip.data.manifest import FileEntry
from pipelines import schema
from pipelines.stages.write import Hashing

SUFFIXES = {b"\xff\xd8": "jpg", b"\x89P": "png", b"RI": "webp"}
"""By the first two bytes of an image."""


def write_tar(shard: tuple[int, FileEntry], *, shards: str, folder: str) -> dict[str, Any]:
    """Write one shard of the folder `shards`, given its number and file, as a tar. Returns the tar's file entry.

    Its bytes depend on the rows alone: members have no time and no owner. Raises ValueError for a file that is not the
    one of the manifest.
    """
    index, entry = shard
    integrity.check_checksum(shards, entry)
    name, rows = f"{index:06d}.tar", 0
    with storage.atomic_writer(storage.join(folder, name)) as file:
        sink = Hashing(file)
        with tarfile.open(fileobj=sink, mode="w|", format=tarfile.USTAR_FORMAT) as tar:  # type: ignore[call-overload]
            for rows, row in enumerate(_rows(storage.join(shards, entry.name)), 1):
                for suffix, content in _members(row):
                    member = tarfile.TarInfo(f"{index:06d}-{rows - 1:06d}.{suffix}")
                    member.size = len(content)
                    tar.addfile(member, io.BytesIO(content))
    return asdict(FileEntry(name=name, rows=rows, bytes=sink.bytes, sha256=sink.sha256.hexdigest()))


def _rows(uri: str) -> Iterator[dict[str, Any]]:
    with storage.opened(uri) as handle:
        file = pq.ParquetFile(handle)
        for group in range(file.num_row_groups):
            yield from file.read_row_group(group).to_pylist()


def _members(row: dict[str, Any]) -> Iterator[tuple[str, bytes]]:
    image = row.pop(schema.IMAGE)
    yield SUFFIXES[image[:2]], image
    yield "txt", row[schema.CAPTIONS][0].encode()
    yield "json", json.dumps(row, ensure_ascii=False, sort_keys=True, default=str).encode()
