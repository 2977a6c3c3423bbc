"""The pass that fetches images: what comes is written at once, what fails is kept with its reason for another run."""

import asyncio
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from llip import storage
from pipelines import schema
from pipelines.stages import write
from pipelines.stages.fetch.download import Client, FetchError, Limits
from pipelines.stages.read import normalise, parquet
from pipelines.stages.work import Partition

FAILED = pa.schema(
    [
        ("row", pa.int32()),
        (schema.ID, pa.string()),
        (schema.URL, pa.string()),
        ("reason", pa.string()),
        ("detail", pa.string()),
    ]
)
"""Links without an image; `row` counts the rows of the partition."""
FINAL = ("invalid address", "no captions", "opted out of AI use")
"""Reasons that another run does not try again."""
GROUP_BYTES = 64 << 20
"""Images that are in memory before they are written, about."""


def file_name(partition: Partition, attempt: int) -> str:
    return f"fetched-{partition.index:06d}-{attempt:03d}.parquet"


def failed_name(partition: Partition, attempt: int) -> str:
    return f"_failed/{attempt:03d}/{partition.index:06d}.parquet"


def fetch_partition(
    partition: Partition, *, folder: str, attempt: int, limits: Limits, sha256: str | None
) -> dict[str, Any]:
    """Fetch the images of a partition that the attempts before have not. Returns the file's entry, and how many links
    are left by which reason."""
    with parquet.opened(partition.file) as file:
        links = file.read_row_groups(list(range(partition.start, partition.stop)))
    rows, failed = list(range(links.num_rows)), FAILED.empty_table()
    if attempt:
        before = read_failed(folder, partition, attempt - 1)
        final = pc.is_in(before["reason"], pa.array(FINAL))
        rows, failed = before["row"].filter(pc.invert(final)).to_pylist(), before.filter(final)
    columns = schema.with_extras(f for f in links.schema if f.name not in schema.REQUIRED)
    with write.parquet_file(folder, file_name(partition, attempt), columns) as target:
        sink = _Sink(links, target)
        asyncio.run(_fetch(links, rows, limits, sha256, sink))
        sink.flush()
    if not target.rows:
        storage.remove(storage.join(folder, file_name(partition, attempt)))
    failed = pa.concat_tables([failed, pa.Table.from_pylist(sink.failed, schema=FAILED)]).sort_by("row")
    with write.parquet_file(folder, failed_name(partition, attempt), FAILED) as ledger:
        ledger.write(failed)
    reasons = Counter(failed["reason"].to_pylist())
    return {"file": asdict(target.entry), "failed": reasons}


def read_failed(folder: str, partition: Partition, attempt: int) -> pa.Table:
    with parquet.opened(storage.join(folder, failed_name(partition, attempt))) as file:
        return file.read()


class _Sink:
    """Takes what became of each row, and writes images in the order in which they come."""

    def __init__(self, links: pa.Table, file: write.ParquetFile) -> None:
        self.links, self.file = links, file
        self.failed: list[dict[str, Any]] = []
        self.came: dict[int, bytes] = {}
        self.size = 0

    def failure(self, row: int, error: FetchError) -> None:
        link = {name: self.links[name][row].as_py() for name in (schema.ID, schema.URL)}
        self.failed.append({"row": row, "reason": error.reason, "detail": error.detail} | link)

    def image(self, row: int, data: bytes) -> None:
        self.came[row] = data
        self.size += len(data)
        if self.size >= GROUP_BYTES or len(self.came) == normalise.BATCH_ROWS:
            self.flush()

    def flush(self) -> None:
        if self.came:
            images = pa.array(self.came.values(), pa.binary())
            table = self.links.take(pa.array(self.came)).append_column(schema.IMAGE, images)
            self.file.write(table.select(self.file.schema.names))
        self.came, self.size = {}, 0


async def _fetch(links: pa.Table, rows: Sequence[int], limits: Limits, sha256: str | None, sink: _Sink) -> None:
    async def fetch(row: int) -> None:
        try:
            if not links[schema.CAPTIONS][row].as_py():
                raise FetchError("no captions")
            checksum = links[sha256][row].as_py() if sha256 else None
            sink.image(row, await client.get(links[schema.URL][row].as_py() or "", checksum))
        except FetchError as error:
            sink.failure(row, error)

    async with Client(limits) as client, asyncio.TaskGroup() as group:
        for row in rows:
            group.create_task(fetch(row))
