"""Boxes that are blurred on the way into shards."""

import io
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from llip.data import manifest
from llip.data.manifest import FileEntry, Manifest
from pipelines.shard import Shard, shard
from pipelines.stages.encode import Encoding, encode
from pipelines.stages.pixels import UnusableImageError

ENCODING = Encoding(max_side=100, format="keep", quality=90, max_pixels=10**6)
NOISE = np.random.default_rng(0).integers(0, 256, (40, 80, 3), np.uint8)


def png(pixels: np.ndarray) -> bytes:
    target = io.BytesIO()
    Image.fromarray(pixels).save(target, "PNG")
    return target.getvalue()


def decoded(data: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(data)))


def test_a_box_is_blurred_and_nothing_else() -> None:
    seen = decoded(encode(png(NOISE), ENCODING, [[0.25, 0.25, 0.5, 0.75]]))
    inside, margin = (slice(10, 30), slice(20, 40)), 3  # a tenth of the box's diagonal of 28 pixels
    assert seen[inside].std() < 0.25 * NOISE[inside].std()
    seen, before = seen.copy(), NOISE.copy()
    wide = slice(10 - margin, 30 + margin), slice(20 - margin, 40 + margin)
    seen[wide] = before[wide] = 0
    assert (seen == before).all()


def test_a_box_follows_the_picture_that_is_scaled_down() -> None:
    large = np.kron(NOISE, np.ones((5, 5, 1), np.uint8))
    seen = decoded(encode(png(large), ENCODING, [[0, 0, 0.5, 1]]))
    assert seen.shape == (50, 100, 3) and seen[:, :44].std() < 0.25 * seen[:, 60:].std()


def test_without_boxes_the_bytes_are_the_same() -> None:
    assert encode(png(NOISE), ENCODING, []) == png(NOISE)


@pytest.mark.parametrize("box", [[0.1, 0.2, 0.3], [0.5, 0, 0.4, 1], [0, 0, float("nan"), 1]])
def test_a_picture_with_an_unusable_box_is_not_let_through(box: list[float]) -> None:
    with pytest.raises(UnusableImageError, match="unusable boxes"):
        encode(png(NOISE), ENCODING, [box])


def curated(folder: Path, boxes: list[list[list[float]] | None]) -> str:
    columns = {"id": [str(i) for i in range(len(boxes))], "image": [png(NOISE)] * len(boxes)}
    captions = pa.array([["x"]] * len(boxes), pa.list_(pa.string()))
    table = pa.table(columns | {"captions": captions, "face_bboxes": pa.array(boxes, pa.list_(pa.list_(pa.float64())))})
    folder.mkdir()
    pq.write_table(table, folder / "a.parquet")
    entry = FileEntry(name="a.parquet", rows=len(boxes), bytes=0, sha256="unused")
    manifest.write(str(folder), Manifest(kind="curated", files=(entry,), config={}))
    return str(folder)


@pytest.mark.usefixtures("in_process", "undrawn")
def test_shards_hold_blurred_pictures(tmp_path: Path) -> None:
    folder = curated(tmp_path / "curated", [[[0.0, 0.0, 1.0, 1.0]], [], None, [[0.5, 0.0]]])
    result = shard(Shard(curated=folder, output=str(tmp_path / "shards"), blur="face_bboxes"))
    assert result.summary["rows"] == {"in": 4, "kept": 3, "dropped": {"unusable boxes": 1}}
    rows = [r for f in result.files for r in pq.read_table(tmp_path / "shards" / f.name).to_pylist()]
    spread = {r["id"]: decoded(r["image"]).std() for r in rows}
    assert spread["0"] < 0.25 * spread["1"] and spread["1"] == spread["2"] == NOISE.std()


def test_a_column_without_boxes_is_refused(tmp_path: Path) -> None:
    folder = curated(tmp_path / "curated", [[]])
    for name, found in (("faces", "not among id, image, captions, face_bboxes"), ("captions", "list<element: string>")):
        with pytest.raises(
            ValueError, match=f"--blur {name}: .*a.parquet needs it as lists of four numbers; it is {found}"
        ):
            shard(Shard(curated=folder, output=str(tmp_path / "shards"), blur=name))
