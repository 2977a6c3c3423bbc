"""Small shards folders for the loader's tests and benchmarks."""

import hashlib
import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from llip.data import manifest


def encode(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    target = io.BytesIO()
    image.save(target, kind, **options)
    return target.getvalue()


def picture(seed: int, height: int = 24, width: int = 32) -> Image.Image:
    """A smooth image of its own for every seed."""
    coarse = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)


def row(number: int, image: bytes | None = None) -> dict[str, object]:
    """A row with 1 to 4 captions, which name it."""
    captions = [f"caption {c} of image {number}" for c in range(1 + number % 4)]
    return {"id": f"row-{number}", "image": image or encode(picture(number)), "captions": captions}


SCHEMA = pa.schema([("id", pa.string()), ("image", pa.binary()), ("captions", pa.list_(pa.string()))])


def write_shards(
    folder: Path | str,
    rows: Sequence[dict[str, object]],
    *,
    files: int,
    row_group_size: int,
    schema: pa.Schema = SCHEMA,
) -> str:
    """Write rows as a finished shards folder of some files of nearly equal size."""
    folder = Path(folder)
    folder.mkdir(parents=True)
    entries = []
    for index, numbers in enumerate(np.array_split(np.arange(len(rows)), files)):
        path = folder / f"part-{index:05d}.parquet"
        table = pa.Table.from_pylist([rows[i] for i in numbers], schema=schema)
        pq.write_table(table, path, row_group_size=row_group_size, write_page_checksum=True)
        content = path.read_bytes()
        digest = hashlib.sha256(content).hexdigest()
        entries.append(manifest.FileEntry(name=path.name, rows=len(numbers), bytes=len(content), sha256=digest))
    manifest.write(
        str(folder), manifest.Manifest(kind="shards", files=tuple(entries), config={}, row_group_size=row_group_size)
    )
    return str(folder)
