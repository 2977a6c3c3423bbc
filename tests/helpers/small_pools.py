"""Small pools for the curation and sharding tests."""

import io
import random
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

WORDS = ["cat", "dog", "sun", "moon", "tree", "boat", "fish", "bird", "hand", "eye", "star", "house"]
SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("image", pa.binary()),
        ("captions", pa.list_(pa.string())),
        ("caption_types", pa.list_(pa.string())),
        ("nsfw", pa.float64()),
    ]
)


def picture(number: int, kind: str = "PNG", size: tuple[int, int] = (20, 16)) -> bytes:
    """A small image that differs from those of other numbers."""
    target = io.BytesIO()
    Image.new("RGB", size, (number % 256, number // 256 % 256, 77)).save(target, kind)
    return target.getvalue()


def pool_rows(count: int) -> list[dict[str, Any]]:
    """Rows with one to four captions; common words are much more common than rare ones."""
    rng = random.Random(0)
    weights = [2**-i for i in range(len(WORDS))]
    rows = []
    for i in range(count):
        captions = [f"a {' and '.join(rng.choices(WORDS, weights, k=2))}, {i}" for _ in range(rng.randint(1, 4))]
        kinds = [f"kind {n}" for n in range(len(captions))]
        rows.append(
            {"id": f"row-{i}", "image": picture(i), "captions": captions, "caption_types": kinds, "nsfw": rng.random()}
        )
    return rows


def write_parquet(folder: Path, rows: list[dict[str, Any]], *, files: int = 2, row_group_size: int = 25) -> str:
    folder.mkdir(parents=True, exist_ok=True)
    for f in range(files):
        part = rows[len(rows) * f // files : len(rows) * (f + 1) // files]
        table = pa.Table.from_pylist(part, schema=SCHEMA)
        pq.write_table(table, folder / f"part-{f}.parquet", row_group_size=row_group_size)
    return str(folder)


def read_all(folder: str | Path) -> list[dict[str, Any]]:
    """Rows of the Parquet files of a folder, in the order of their names."""
    files = sorted(p for p in Path(folder).iterdir() if p.suffix == ".parquet")
    return [row for file in files for row in pq.read_table(file).to_pylist()]
