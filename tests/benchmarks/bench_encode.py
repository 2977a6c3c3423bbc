"""Photographs to a shorter side of 256 pixels: `encode` against Pillow's full decode, resize and encode, with ratios.

    uv run python tests/benchmarks/bench_encode.py

Two photographs enlarged to 1, 2 and 4 megapixels with grain (JPEG, quality 90); both write JPEG of quality 90. CPU
seconds are counted, taking turns.
"""

from pathlib import Path
import sys
import io
import statistics
import time

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_sample_images

from pipelines.stages.encode import Encoding, encode

sys.path.insert(0, str(Path(__file__).parents[1]))
from helpers.bars import holds

MEGAPIXELS, SHORT, ROUNDS = (1.0, 2.0, 4.0), 256, 9
BAR = 1.5


def photographs(megapixels: float) -> list[bytes]:
    rng = np.random.default_rng(0)
    found = []
    for pixels in load_sample_images().images:
        picture = Image.fromarray(pixels)
        scale = (megapixels * 1e6 / (picture.width * picture.height)) ** 0.5
        large = picture.resize((round(picture.width * scale), round(picture.height * scale)), Image.Resampling.BICUBIC)
        grain = np.asarray(large) + rng.normal(0, 3, (large.height, large.width, 1))
        target = io.BytesIO()
        Image.fromarray(grain.clip(0, 255).astype(np.uint8)).save(target, "JPEG", quality=90)
        found.append(target.getvalue())
    return found


def literal(data: bytes) -> bytes:
    picture = Image.open(io.BytesIO(data)).convert("RGB")
    scale = SHORT / min(picture.size)
    size = (round(picture.width * scale), round(picture.height * scale))
    target = io.BytesIO()
    picture.resize(size, Image.Resampling.LANCZOS).save(target, "JPEG", quality=90)
    return target.getvalue()


def ours(data: bytes) -> bytes:
    width, height = Image.open(io.BytesIO(data)).size
    longest = round(SHORT * max(width, height) / min(width, height))
    return encode(data, Encoding(max_side=longest, format="keep", quality=90, max_pixels=10**8))


def noise(stored: bytes, data: bytes) -> float:
    """How far a stored image is from the photograph scaled to its size, peak signal-to-noise ratio in dB."""
    found = Image.open(io.BytesIO(stored))
    exact = Image.open(io.BytesIO(data)).convert("RGB").resize(found.size, Image.Resampling.LANCZOS)
    error = np.asarray(found, np.float64) - np.asarray(exact, np.float64)
    return float(10 * np.log10(255**2 / (error**2).mean()))


def measure() -> dict[float, list[float]]:
    """Ratios of the rounds by size, ascending; prints a table."""
    result: dict[float, list[float]] = {}
    for megapixels in MEGAPIXELS:
        data = photographs(megapixels)
        seconds: dict[str, list[float]] = {"ours": [], "literal": []}
        for _ in range(ROUNDS):
            for name, function in (("ours", ours), ("literal", literal)):
                started = time.process_time()
                for photograph in data:
                    function(photograph)
                seconds[name].append((time.process_time() - started) / len(data))
        ratios = sorted(b / a for a, b in zip(seconds["ours"], seconds["literal"], strict=True))
        result[megapixels] = ratios
        faithful = [min(noise(form(d), d) for d in data) for form in (ours, literal)]
        print(
            f"{megapixels:.0f} megapixels  {1e3 * statistics.median(seconds['ours']):6.1f} ms against"
            f" {1e3 * statistics.median(seconds['literal']):6.1f} ms: {statistics.median(ratios):.1f} times as fast"
            f" ({ratios[0]:.1f} – {ratios[-1]:.1f}); {faithful[0]:.1f} dB against {faithful[1]:.1f} dB"
        )
        assert faithful[0] > faithful[1] - 3
    return result


@pytest.mark.bench
def test_large_photographs_are_not_decoded_at_full_size() -> None:
    assert all(holds((1 / ratio for ratio in ratios), at_most=1 / BAR) for ratios in measure().values())


if __name__ == "__main__":
    measure()
