"""Small shards and a small configuration for tests of training."""

import hashlib
import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from llip.config import DataConfig, HeadConfig, ModelConfig, OptimizerConfig, TextConfig, TrainingConfig, VisionConfig
from llip.data import manifest
from llip.data.manifest import FileEntry, Manifest

COLOURS = {"red": (220, 30, 30), "green": (30, 200, 40), "blue": (40, 60, 220), "white": (240, 240, 240)}
SIDES = ("left", "right", "top", "bottom")


def _image(colour: str, side: str, rng: np.random.Generator) -> bytes:
    """A coloured half on a noisy ground."""
    pixels = rng.integers(90, 130, (32, 32, 3), dtype=np.uint8)
    half = {"left": np.s_[:, :16], "right": np.s_[:, 16:], "top": np.s_[:16, :], "bottom": np.s_[16:, :]}[side]
    pixels[half] = COLOURS[colour]
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture(scope="session")
def shards(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Two shards of 64 images, in row groups of 16."""
    folder = tmp_path_factory.mktemp("shards")
    rng = np.random.default_rng(0)
    files = []
    for number in range(2):
        rows = []
        for index in range(64):
            colour, side = rng.choice(list(COLOURS)), rng.choice(SIDES)
            captions = [f"something {colour}", f"on the {side}", f"{colour} on the {side}"]
            rows.append({"id": f"{number}-{index}", "image": _image(colour, side, rng), "captions": captions})
        path = folder / f"data-{number:05d}.parquet"
        pq.write_table(pa.Table.from_pylist(rows), path, row_group_size=16)
        content = path.read_bytes()
        digest = hashlib.sha256(content).hexdigest()
        files.append(FileEntry(name=path.name, rows=64, bytes=len(content), sha256=digest))
    manifest.write(str(folder), Manifest(kind="shards", files=tuple(files), config={}, row_group_size=16))
    return str(folder)


@pytest.fixture(scope="session")
def small() -> TrainingConfig:
    """Llip on 24-pixel images, 6 steps of 16, two captions an image."""
    return TrainingConfig(
        model=ModelConfig(
            embed_dim=16,
            vision=VisionConfig(image_size=24, patch_size=12, width=16, layers=2, head_width=8, tokens=3),
            text=TextConfig(context_length=16, width=16, heads=2, layers=1),
            head=HeadConfig(kind="text_query", heads=2),
            init_logit_bias=-10.0,
        ),
        optimizer=OptimizerConfig(learning_rate=1e-2, warmup_steps=2),
        data=DataConfig(batch_size=16, captions_per_image=2, lanes=4, threads=1, prefetch=2),
        steps=6,
        precision="fp32",
        log_every=1,
        checkpoint_every=2,
    )


@pytest.fixture
def run_folder(tmp_path: Path) -> Callable[[str], str]:
    """Names of run folders of one test."""
    return lambda name: str(tmp_path / "runs" / name)
