"""Pools as the world sends them, and what is read of them."""

import gzip
import io
import tarfile
from collections import Counter
from pathlib import Path
from typing import Any

from pipelines import schema
from pipelines.stages import read
from pipelines.stages.filter import rules

Rows = list[dict[str, Any]]


def rows_of(uri: Path | str, **options: Any) -> tuple[Rows, Counter[str]]:
    """The rows of a pool with the reasons of those that cannot be used, and what is not read."""
    pool = read.open_pool(str(uri), partition_rows=10, **options)
    unread = Counter[str](pool.unread)
    columns = (*pool.columns.names, schema.REASON)
    rows = [r for p in pool.partitions for t in read.tables(pool.format, p, columns, unread) for r in t.to_pylist()]
    assert {r[schema.REASON] for r in rows} - {None} <= set(rules.ROW_REASONS)
    assert len({r["id"] for r in rows}) == len(rows), "ids are unique"
    return rows, unread


def seen(rows: Rows) -> list[Any]:
    """Captions, or the reason of a row that cannot be used."""
    return [r[schema.REASON] or r["captions"] for r in rows]


def tar_of(members: list[tuple[str, bytes]]) -> bytes:
    target = io.BytesIO()
    with tarfile.open(fileobj=target, mode="w") as tar:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return target.getvalue()


def pair(key: str, text: str) -> list[tuple[str, bytes]]:
    return [(f"{key}.jpg", b"J" + key.encode()), (f"{key}.txt", text.encode())]


def listed(folder: Path, name: str, content: bytes | str) -> Path:
    for i in range(4):
        (folder / f"{i}.jpg").write_bytes(b"%d" % i)
    data = content.encode("utf-8", "surrogatepass") if isinstance(content, str) else content
    (folder / name).write_bytes(gzip.compress(data) if name.endswith(".gz") else data)
    return folder
