"""Images per CPU second: the loader against open_clip's WebDataset loader on the same JPEG files, with ratios.

    uv run python tests/benchmarks/bench_loader.py

Photographs of 341 x 256 pixels (JPEG, quality 90) to 224, one caption an image, crops of 0.9 to 1.0 of the area, one
worker each; they take turns. CPU seconds of all threads and processes are counted, which other processes of a busy
machine do not add to.
The second table is the small-image path of the built-in corpus: 64 to 48 pixels, four captions an image. The last
lines are the seconds from opening the loader in the middle of an epoch to its first batch, and the memory of the
process while 100,000 of these samples pass.
"""

import io
import os
import statistics
import sys
import tarfile
import tempfile
import time
from argparse import Namespace
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import numpy as np
import open_clip
import psutil
import pyarrow.parquet as pq
import pytest
import torch
from open_clip_train.data import get_wds_dataset
from PIL import Image
from sklearn.datasets import load_sample_images

from llip.config import DataConfig
from llip.data import corpus
from llip.data.loader import LaneLoader

sys.path.insert(0, str(Path(__file__).parents[1]))
from helpers.shard_folders import encode, picture, write_shards


PHOTOS, BATCH, BATCHES, ROUNDS = 1024, 64, 8, 7
SAMPLES = 100_000
"""That pass while memory is watched."""
BAR = 2.0
"""Times as many images per CPU second as open_clip's loader."""


def photos(height: int, width: int) -> list[Image.Image]:
    """Different cuts of two photographs, resized."""
    rng = np.random.default_rng(0)
    sources = [Image.fromarray(image) for image in load_sample_images().images]
    cuts = []
    for i in range(PHOTOS):
        cut_height = int(rng.integers(340, 400))
        cut_width = cut_height * width // height
        left, top = int(rng.integers(640 - cut_width)), int(rng.integers(427 - cut_height))
        box = (left, top, left + cut_width, top + cut_height)
        cuts.append(sources[i % 2].resize((width, height), Image.Resampling.BICUBIC, box=box))
    return cuts


def rows(images: list[bytes], captions: int) -> list[dict[str, object]]:
    texts = [f"a photograph number {c} of a temple and a flower in the bright summer light" for c in range(captions)]
    return [{"id": f"{i:06d}", "image": image, "captions": texts} for i, image in enumerate(images)]


def write_tar(path: Path, samples: list[dict[str, object]]) -> None:
    with tarfile.open(path, "w") as tar:
        for sample in samples:
            for suffix, content in (("jpg", sample["image"]), ("txt", sample["captions"][0].encode())):  # type: ignore[index]
                entry = tarfile.TarInfo(f"{sample['id']}.{suffix}")
                entry.size = len(content)  # type: ignore[arg-type]
                tar.addfile(entry, io.BytesIO(content))  # type: ignore[arg-type]


def open_clip_batches(tar: Path, size: int) -> Iterator[object]:
    settings = Namespace(
        train_data=str(tar),
        train_num_samples=10**7,
        train_data_upsampling_factors=None,
        dataset_resampled=True,
        batch_size=BATCH,
        workers=1,
        world_size=1,
        seed=0,
    )
    transform = open_clip.image_transform(size, is_train=True, aug_cfg={"scale": (0.9, 1.0)})
    info = get_wds_dataset(settings, transform, is_train=True, tokenizer=open_clip.SimpleTokenizer())
    return iter(info.dataloader)


def cpu_seconds() -> float:
    """Of this process and its children."""
    own = psutil.Process()
    return sum(t.user + t.system for t in (p.cpu_times() for p in [own, *own.children(recursive=True)]))


def images_per_second(batches: Iterator[object]) -> float:
    """Batches that were made ahead while the other loader was measured are drawn first."""
    for _ in range(6):
        next(batches)
    start = cpu_seconds()
    for _ in range(BATCHES):
        next(batches)
    return BATCH * BATCHES / (cpu_seconds() - start)


def compare(ours: Iterator[object], theirs: Iterator[object]) -> list[tuple[float, float]]:
    images_per_second(ours), images_per_second(theirs)
    return [(images_per_second(ours), images_per_second(theirs)) for _ in range(ROUNDS)]


def against_open_clip(folder: Path) -> float:
    samples = rows([encode(p, "JPEG", quality=90) for p in photos(256, 341)], captions=1)
    write_tar(folder / "000000.tar", samples)
    shards = write_shards(folder / "shards", samples, files=2, row_group_size=64)
    config = DataConfig(batch_size=BATCH, lanes=8, threads=1, prefetch=2)
    with (
        LaneLoader(shards, config, image_size=224, context_length=77, seed=0) as loader,
        closing(loader.iter_from(0)) as ours,
    ):
        rounds = compare(ours, open_clip_batches(folder / "000000.tar", 224))
    ratios = sorted(a / b for a, b in rounds)
    mine, theirs = (statistics.median(rates) for rates in zip(*rounds, strict=True))
    median = statistics.median(ratios)
    print(f"{'ours':>8} {'open_clip':>10}   images per CPU second, median; ratio min / median / max of {ROUNDS} rounds")
    print(f"{mine:8,.0f} {theirs:10,.0f}   {ratios[0]:.2f} {median:.2f} {ratios[-1]:.2f}")
    return median


def small_pictures(folder: Path) -> None:
    print("built-in corpus, 64 to 48 pixels, 4 captions: images per CPU second, min / median / max")
    corpus.write_pool(str(folder / "pool"), corpus.CorpusConfig(rows=PHOTOS, rows_per_file=PHOTOS), progress=False)
    stored = pq.read_table(next((folder / "pool").glob("**/*.parquet")), columns=["image"])["image"].to_pylist()
    pictures = [Image.open(io.BytesIO(content)).convert("RGB") for content in stored]
    encoders: dict[str, Callable[[Image.Image], bytes]] = {
        "PNG": lambda p: encode(p, "PNG", compress_level=4),
        "lossless WebP": lambda p: encode(p, "WEBP", lossless=True),
        "JPEG": lambda p: encode(p, "JPEG", quality=90),
    }
    for name, encoder in encoders.items():
        shards = write_shards(folder / name, rows([encoder(p) for p in pictures], 4), files=2, row_group_size=64)
        with small_loader(shards) as loader, closing(loader.iter_from(0)) as batches:
            rates = sorted(images_per_second(batches) for _ in range(ROUNDS))
        print(f"{name:>14}   {rates[0]:,.0f} {statistics.median(rates):,.0f} {rates[-1]:,.0f}")


def small_loader(shards: str) -> LaneLoader:
    config = DataConfig(batch_size=BATCH, captions_per_image=4, lanes=8, threads=1, prefetch=2)
    return LaneLoader(shards, config, image_size=48, context_length=32, seed=0)


def resume_seconds(shards: str) -> float:
    """The slowest of a few resumptions, each somewhere in an epoch."""
    seconds = []
    for step in range(7, 7 * ROUNDS + 7, 7):
        start = time.perf_counter()
        with small_loader(shards) as loader, closing(loader.iter_from(step)) as batches:
            next(batches)
            seconds.append(time.perf_counter() - start)
    print(f"first batch after a resume: {statistics.median(seconds):.2f} s, at most {max(seconds):.2f} s")
    return max(seconds)


def memory_growth(shards: str) -> float:
    """MiB by which the process grows from the first tenth of the samples to the last."""
    resident = []
    with small_loader(shards) as loader, closing(loader.iter_from(0)) as batches:
        for step in range(SAMPLES // BATCH + 1):
            next(batches)
            if step % (SAMPLES // BATCH // 10) == 0:
                resident.append(psutil.Process().memory_info().rss / 2**20)
    print(f"resident MiB, every {SAMPLES // 10:,} samples:", *(f"{mib:,.0f}" for mib in resident))
    return resident[-1] - resident[1]


def main() -> float:
    torch.set_num_threads(1)
    os.environ["OMP_NUM_THREADS"] = "1"
    with tempfile.TemporaryDirectory() as folder:
        median = against_open_clip(Path(folder))
        small_pictures(Path(folder))
        resume_seconds(f"{folder}/JPEG")
        memory_growth(f"{folder}/JPEG")
    return median


@pytest.mark.bench
def test_a_resumed_loader_is_quick_and_its_memory_flat(tmp_path: Path) -> None:
    pictures = [encode(picture(i, 64, 64), "JPEG") for i in range(PHOTOS)]
    shards = write_shards(tmp_path / "shards", rows(pictures, 4), files=2, row_group_size=64)
    assert resume_seconds(shards) <= 2
    assert memory_growth(shards) <= 50


@pytest.mark.bench
def test_loading_is_twice_as_fast_as_open_clip() -> None:
    assert main() >= BAR


if __name__ == "__main__":
    main()
