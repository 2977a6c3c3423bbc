"""Shards: their layout, their order, and what happens to images."""

import hashlib
import io
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from helpers.plain_reference import plain_hash
from helpers.small_pools import picture, pool_rows, read_all, write_parquet
from PIL import Image
from sklearn.datasets import load_sample_images

from llip import storage
from llip.data import manifest
from llip.data.manifest import FileEntry, Manifest
from pipelines.shard import Shard, shard
from pipelines.stages.encode import Encoding, encode
from pipelines.stages.pixels import UnusableImageError

ENCODING = Encoding(max_side=64, format="keep", quality=90, max_pixels=1_000_000)


def curated(folder: Path, rows: list[dict[str, Any]], files: int = 3) -> str:
    """A finished curated folder of those rows."""
    write_parquet(folder, rows, files=files)
    entries = [
        FileEntry(name=p.name, rows=pq.read_metadata(p).num_rows, bytes=p.stat().st_size, sha256="unused")
        for p in sorted(folder.glob("*.parquet"))
    ]
    manifest.write(str(folder), Manifest(kind="curated", files=tuple(entries), config={"pool": "a test's"}))
    return str(folder)


def group_sizes(folder: str) -> list[list[int]]:
    files = [pq.read_metadata(f.removeprefix("file://")) for f in storage.listing(folder, ".parquet")]
    return [[m.row_group(g).num_rows for g in range(m.num_row_groups)] for m in files]


class TestShard:
    @pytest.mark.usefixtures("ray_session")
    def test_order_is_that_of_the_keys_whatever_the_partitioning(self, tmp_path: Path) -> None:
        rows = pool_rows(150)
        ordered = sorted(rows, key=lambda r: plain_hash(7, r["id"], 0))
        first = Shard(curated=curated(tmp_path / "a", rows), output=str(tmp_path / "out/a"), seed=7)
        second = replace(first, curated=curated(tmp_path / "b", rows[::-1], files=11), output=str(tmp_path / "out/b"))
        results = [shard(first), shard(second)]
        assert read_all(first.output) == ordered
        assert [f.sha256 for f in results[0].files] == [f.sha256 for f in results[1].files]

    @pytest.mark.usefixtures("in_process")
    def test_layout_and_manifest(self, tmp_path: Path) -> None:
        settings = Shard(curated=curated(tmp_path / "curated", pool_rows(107)), output=str(tmp_path / "shards"))
        settings = replace(settings, rows_per_group=10, rows_per_file=30)
        result = shard(settings)
        assert group_sizes(settings.output) == [[10] * 3, [10] * 3, [10] * 3, [10, 7]]
        assert result.row_group_size == 10 and [f.rows for f in result.files] == [30, 30, 30, 17]
        for entry in result.files:
            content = Path(settings.output, entry.name).read_bytes()
            assert entry.bytes == len(content) and entry.sha256 == hashlib.sha256(content).hexdigest()
        assert result.summary["rows"] == {"in": 107, "kept": 107, "dropped": {}}
        assert sorted(p.name for p in Path(settings.output).iterdir()) == [
            "manifest.json",
            *(f"shard-{i:06d}.parquet" for i in range(4)),
        ]

    @pytest.mark.usefixtures("in_process")
    def test_a_small_pool_has_row_groups_for_every_lane(self, tmp_path: Path) -> None:
        settings = Shard(curated=curated(tmp_path / "curated", pool_rows(200)), output=str(tmp_path / "shards"))
        result = shard(settings)
        sizes = group_sizes(settings.output)
        assert result.row_group_size == 3 and sum(map(len, sizes)) == 67 and len(sizes) == 8
        assert {n for groups in sizes for n in groups[:-1]} == {3} and max(map(len, sizes)) - min(map(len, sizes)) == 1

    @pytest.mark.usefixtures("in_process")
    def test_broken_pictures_are_dropped_with_a_reason(self, tmp_path: Path) -> None:
        rows = pool_rows(30)
        rows[3]["image"], rows[9]["image"] = rows[3]["image"][:50], picture(1, size=(2000, 1000))
        settings = Shard(curated=curated(tmp_path / "curated", rows), output=str(tmp_path / "shards"), max_pixels=10**6)
        result = shard(settings)
        assert result.summary["rows"] == {
            "in": 30,
            "kept": 28,
            "dropped": {"undecodable image": 1, "too many pixels": 1},
        }
        assert {r["id"] for r in read_all(settings.output)} == {r["id"] for r in rows} - {"row-3", "row-9"}

    @pytest.mark.usefixtures("in_process")
    def test_a_second_run_does_nothing_and_other_settings_are_refused(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        settings = Shard(curated=curated(tmp_path / "curated", pool_rows(20)), output=str(tmp_path / "shards"))
        first = shard(settings)
        capsys.readouterr()
        assert shard(settings) == first and "already" in capsys.readouterr().out
        with pytest.raises(ValueError, match=r"other settings.*seed: 0 → 1"):
            shard(replace(settings, seed=1))
        curated(tmp_path / "curated", pool_rows(21))
        with pytest.raises(ValueError, match=r"other settings.*curated_digest"):
            shard(settings)

    @pytest.mark.usefixtures("in_process")
    def test_repeated_ids_are_refused(self, tmp_path: Path) -> None:
        rows = pool_rows(20)
        rows[17]["id"] = "row-2"
        with pytest.raises(ValueError, match="the id 'row-2' names several rows"):
            shard(Shard(curated=curated(tmp_path / "curated", rows), output=str(tmp_path / "shards")))

    @pytest.mark.usefixtures("in_process")
    def test_a_bucket(self, tmp_path: Path, s3_bucket: str) -> None:
        rows = pool_rows(40)
        folder = curated(tmp_path / "curated", rows)
        for file in storage.listing(folder):
            storage.write_bytes(f"{s3_bucket}/curated/{Path(file).name}", Path(file).read_bytes())
        far = Shard(curated=f"{s3_bucket}/curated", output=f"{s3_bucket}/shards")
        near = Shard(curated=folder, output=str(tmp_path / "shards"))
        assert shard(far).files == shard(near).files
        assert len(storage.listing(f"{s3_bucket}/shards")) == 9


def test_an_unfinished_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="is not a finished curated folder"):
        shard(Shard(curated=str(tmp_path), output=str(tmp_path / "shards")))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"quality": 101}, "--quality is 101"),
        ({"max_side": 0}, "--max-side is 0"),
        ({"rows_per_file": 100}, "multiple of --rows-per-group, which is not given"),
        ({"rows_per_file": 100, "rows_per_group": 30}, "multiple of --rows-per-group, which is 30"),
    ],
)
def test_contradicting_settings_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Shard(**changes)


def opened(data: bytes) -> Image.Image:
    return Image.open(io.BytesIO(data))


def saved(image: Image.Image, kind: str, **options: Any) -> bytes:
    target = io.BytesIO()
    image.save(target, kind, **options)
    return target.getvalue()


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_small_pictures_pass_unchanged(kind: str) -> None:
    data = picture(5, kind)
    assert encode(data, ENCODING) == data


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_large_pictures_are_scaled_down_in_their_own_format(kind: str) -> None:
    result = opened(encode(picture(200, kind, (300, 200)), ENCODING))
    assert result.size == (64, 43) and result.format == kind
    np.testing.assert_allclose(np.asarray(result.convert("RGB")).mean((0, 1)), (200, 0, 77), atol=3)


@pytest.mark.parametrize(("wanted", "kind"), [("jpeg", "JPEG"), ("webp", "WEBP"), ("png", "PNG")])
def test_another_format_is_encoded_anew(wanted: Any, kind: str) -> None:
    source = picture(5, "PNG" if kind != "PNG" else "JPEG")
    assert opened(encode(source, replace(ENCODING, format=wanted))).format == kind


def test_a_turned_photograph_is_stored_upright() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    result = opened(encode(saved(Image.new("RGB", (30, 20)), "JPEG", exif=exif), ENCODING))
    assert result.size == (20, 30) and result.getexif().get(0x0112, 1) == 1


def test_photographs_of_several_frames_stay_jpeg() -> None:
    photograph = Image.new("RGB", (300, 200), (200, 0, 77))
    data = saved(photograph, "MPO", save_all=True, append_images=[photograph.resize((30, 20))])
    assert opened(data).format == "MPO"
    result = opened(encode(data, ENCODING))
    assert result.format == "JPEG" and max(result.size) == 64
    assert encode(data, replace(ENCODING, max_side=300)) == data


def test_a_jpeg_is_scaled_as_one_decoded_in_full() -> None:
    """A photograph of a size that no eighth divides: what lies beyond its border is no part of it."""
    data = saved(Image.fromarray(load_sample_images().images[0]).resize((1224, 817)), "JPEG", quality=95)
    stored = opened(encode(data, replace(ENCODING, max_side=384, max_pixels=10**8, quality=95)))
    exact = opened(data).resize(stored.size, Image.Resampling.LANCZOS)
    error = (np.asarray(stored, float) - np.asarray(exact, float)) ** 2
    assert stored.size == (384, 256) and 10 * np.log10(255**2 / error.mean()) > 30


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_what_is_transparent_lies_on_white(mode: str) -> None:
    result = opened(encode(saved(Image.new(mode, (8, 8), 0), "PNG"), ENCODING))
    assert result.mode == "RGB" and np.asarray(result).min() == 255


@pytest.mark.parametrize(
    ("mode", "kind"), [("CMYK", "JPEG"), ("1", "PNG"), ("P", "GIF"), ("RGB", "BMP"), ("I;16", "PNG")]
)
def test_unusual_pictures_become_ones_that_every_loader_reads(mode: str, kind: str) -> None:
    result = opened(encode(saved(Image.new(mode, (8, 8)), kind), ENCODING))
    assert result.mode in ("RGB", "L") and result.format in ("JPEG", "PNG")


@pytest.mark.parametrize("data", [b"", b"junk", picture(1)[:60], picture(1, "JPEG", (60, 60))[:400]])
def test_broken_pictures_are_unusable(data: bytes) -> None:
    with pytest.raises(UnusableImageError, match="undecodable"):
        encode(data, ENCODING)


def test_a_bomb_is_not_decoded() -> None:
    with pytest.raises(UnusableImageError, match="too many pixels"):
        encode(saved(Image.new("1", (20_000, 20_000)), "PNG"), ENCODING)
