"""Images decoded on a device, here the CPU: the samples, captions and replacements of the CPU's own path, its pixels
to two levels, whatever is broken. Nothing here says how nvJPEG's pixels differ from libjpeg's."""

import itertools
import logging
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from helpers.shard_folders import encode, picture, row, write_shards
from PIL import Image
from sklearn.datasets import load_sample_images
from torch import Tensor

from llip.config import DataConfig
from llip.data import jpeg_device as module
from llip.data.decode import DecodeError, decode
from llip.data.jpeg_device import JpegDevice, is_plain, jpeg_device
from llip.data.loader import Batch, LaneLoader, LoaderStats
from llip.data.transforms import crop_draws, resize, resize_in_float, training_transform

CONFIG = DataConfig(batch_size=32, captions_per_image=2, lanes=8, threads=2, prefetch=2, crop_scale=(0.4, 1.0))
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def jpegs() -> JpegDevice:
    return JpegDevice(CPU)


def _file(number: int) -> bytes:
    """Mostly JPEGs, of several sizes and kinds."""
    image = picture(number, 30 + number % 7, 40 - number % 5)
    kinds = [("RGB", "JPEG"), ("RGB", "PNG"), ("RGB", "WEBP"), ("CMYK", "JPEG"), ("L", "JPEG")]
    mode, kind = kinds[number % 10] if number % 10 < len(kinds) else kinds[0]
    options = {"progressive": number % 3 == 0, "subsampling": number % 2 * 2} if kind == "JPEG" else {}
    return encode(image.convert(mode), kind, **options)


def _batches(
    folder: str, start: int, count: int, jpegs: JpegDevice | None = None, **options: int
) -> tuple[list[Batch], LoaderStats]:
    config = replace(CONFIG, jpeg_device="cuda") if jpegs else CONFIG
    with (
        LaneLoader(folder, config, image_size=24, context_length=16, seed=5, jpegs=jpegs, **options) as loader,
        closing(loader.iter_from(start)) as batches,
    ):
        return list(itertools.islice(batches, count)), loader.stats


def _agree(left: Batch, right: Batch, levels: int) -> None:
    assert (left.step, left.sample_ids) == (right.step, right.sample_ids)
    assert torch.equal(left.token_ids, right.token_ids)
    assert left.images.dtype == right.images.dtype == torch.uint8
    assert left.images.is_contiguous(memory_format=torch.channels_last)
    assert right.images.is_contiguous(memory_format=torch.channels_last)
    assert (left.images.int() - right.images.int()).abs().max() <= levels


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    rows = [row(i, _file(i)) for i in range(160)]
    return write_shards(tmp_path_factory.mktemp("jpegs") / "shards", rows, files=2, row_group_size=16)


def test_batches_are_those_of_the_cpu(folder: str, jpegs: JpegDevice, monkeypatch: pytest.MonkeyPatch) -> None:
    expected, decoder = _batches(folder, 0, 7)[0], module.decode_jpeg
    counts: list[int] = []

    def counted(encoded: list[Tensor], **options: object) -> list[Tensor]:
        counts.append(len(encoded))
        return decoder(encoded, **options)

    monkeypatch.setattr(module, "decode_jpeg", counted)
    made = _batches(folder, 0, 7, jpegs)[0]
    assert 7 <= len(counts) <= 10, "a batch at once, and some ahead"
    assert min(counts) > 15
    for left, right in zip(expected, made, strict=True):
        _agree(left, right, levels=2)


@pytest.mark.parametrize("chunk", [1, 5])
def test_resuming_ranks_and_chunks_change_nothing(
    folder: str, jpegs: JpegDevice, chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = _batches(folder, 0, 7, jpegs)[0]
    monkeypatch.setattr("llip.data.loader.DEVICE_CHUNK", chunk)
    for left, right in zip(whole[3:], _batches(folder, 3, 4, jpegs)[0], strict=True):
        _agree(left, right, levels=0)
    places = torch.arange(32).view(8, 4)[1::2].flatten()
    for left, right in zip(whole, _batches(folder, 0, 7, jpegs, rank=1, world_size=2)[0], strict=True):
        assert right.sample_ids == [left.sample_ids[i] for i in places]
        assert torch.equal(right.images, left.images[places])


def _damaged(number: int) -> bytes:
    """Of every ten rows five are damaged, each in its own way."""
    data = encode(picture(number, 48, 64), "JPEG", quality=95)
    scan = data.index(b"\xff\xda")
    tables = data.index(b"\xff\xc4")
    return {
        1: b"broken",
        3: data[: len(data) // 2],  # truncated: no end
        5: data[: len(data) // 2] + b"\xff\xd9",  # truncated, but with an end, so that libjpeg shows the half
        7: data[: tables + 5] + b"\xff" * 16 + data[tables + 21 :],  # looks whole; its codes are none
        9: data[:scan],  # nothing but a header
    }.get(number % 10, data)


def test_broken_jpegs_give_way_to_the_same_images(
    tmp_path: Path, jpegs: JpegDevice, caplog: pytest.LogCaptureFixture
) -> None:
    rows = [row(i, _damaged(i)) for i in range(96)]
    damaged = write_shards(tmp_path / "shards", rows, files=2, row_group_size=16)
    expected, of_cpu = _batches(damaged, 0, 6)
    with caplog.at_level(logging.WARNING):
        made, of_device = _batches(damaged, 0, 6, JpegDevice(CPU))
    assert of_device.decode_errors == of_cpu.decode_errors >= 60
    assert sum("refuses JPEGs" in message for message in caplog.messages) == 1, "once, however many"
    for left, right in zip(expected, made, strict=True):
        _agree(left, right, levels=2)


def test_what_the_device_refuses_is_found_and_left_to_the_cpu(
    folder: str, jpegs: JpegDevice, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As nvJPEG with a sampling that it does not know: one such image, and the whole batch is an error."""
    expected, decoder = _batches(folder, 0, 5)[0], module.decode_jpeg
    refused: list[int] = []

    def picky(encoded: list[Tensor], **options: object) -> list[Tensor]:
        if any(len(data) % 9 == 0 for data in encoded):
            refused.append(len(encoded))
            raise RuntimeError("Unknown chroma subsampling")
        return decoder(encoded, **options)

    monkeypatch.setattr(module, "decode_jpeg", picky)
    made, stats = _batches(folder, 0, 5, jpegs)
    assert refused.count(1) >= 5
    assert max(refused) > 8
    assert stats.decode_errors == 0
    for left, right in zip(expected, made, strict=True):
        _agree(left, right, levels=2)


def test_crops_of_photographs_are_those_of_the_cpu(jpegs: JpegDevice) -> None:
    """To two levels; with less than one in a hundred values off at all."""
    photos = [Image.fromarray(p) for p in load_sample_images().images]
    files = [encode(photo.resize(size), "JPEG") for photo in photos for size in ((640, 427), (200, 300), (90, 60))]
    turned = Image.Exif()
    turned[0x0112] = 6
    files.append(encode(photos[0].resize((320, 200)), "JPEG", exif=turned))
    numbers = crop_draws(3, np.arange(len(files)))
    for data, drawn, pixels in zip(files, numbers, jpegs.crops(files, 112, (0.3, 1.0), numbers), strict=True):
        assert pixels is not None
        difference = (pixels.int() - training_transform(data, 112, (0.3, 1.0), drawn).int()).abs()
        assert difference.max() <= 2
        assert (difference > 1).float().mean() < 1e-4
        assert (difference > 0).float().mean() < 0.01


@pytest.mark.parametrize("size", [(24, 24), (24, 60), (224, 224), (400, 300)])
def test_resizing_in_floating_point_is_that_of_integers(size: tuple[int, int]) -> None:
    """Also where the filter overshoots black and white most; one pass over both axes would be off by 30 levels."""
    rng = np.random.default_rng(0)
    for high, factor in ((256, 1), (2, 255)):
        pixels = torch.from_numpy(rng.integers(0, high, (3, 180, 240)).astype(np.uint8) * np.uint8(factor))
        difference = (resize_in_float(pixels, *size).int() - resize(pixels, *size).int()).abs()
        assert difference.max() <= 2
        assert (difference > 1).float().mean() < 1e-4
        assert difference.float().mean() < 0.02
    assert resize_in_float(pixels, 180, 240) is pixels


def test_only_whole_jpegs_that_decoders_agree_on_are_plain() -> None:
    image = picture(0, 48, 64)
    for options in (
        {},
        {"progressive": True},
        {"subsampling": 2},
        {"restart_marker_blocks": 1},
        {"comment": b"x" * 300},
    ):
        data = encode(image, "JPEG", **options)
        assert is_plain(data)
        assert is_plain(memoryview(pa.py_buffer(data)))
    plain = encode(image, "JPEG")
    assert is_plain(encode(image.convert("L"), "JPEG"))
    for other in (b"", plain[:2], plain[:-1], plain + b"\0", plain[: plain.index(b"\xff\xda")] + b"\xff\xd9"):
        assert not is_plain(other)
    assert not is_plain(encode(image.convert("CMYK"), "JPEG"))
    assert not is_plain(encode(image, "JPEG", keep_rgb=True)), "RGB that is not YCbCr"
    assert not is_plain(encode(image, "PNG"))
    frame = plain.index(b"\xff\xc0")
    assert not is_plain(plain[: frame + 1] + b"\xc9" + plain[frame + 2 :]), "arithmetic codes"
    assert not is_plain(plain[: frame + 4] + b"\x0c" + plain[frame + 5 :]), "12 bits"
    adobe = b"\xff\xee\x00\x0eAdobe\x00\x64\x00\x00\x00\x00"
    assert not is_plain(plain[:2] + adobe + b"\x00" + plain[2:]), "RGB, says Adobe"
    assert is_plain(plain[:2] + adobe + b"\x01" + plain[2:])


def test_damage_never_ends_the_process_and_never_passes_what_the_cpu_refuses(jpegs: JpegDevice) -> None:
    rng = np.random.default_rng(0)
    intact = encode(picture(1, 32, 48), "JPEG", quality=95)
    files = []
    for _ in range(300):
        data = bytearray(intact)
        start = rng.integers(len(data))
        data[start : start + 20] = rng.bytes(len(data[start : start + 20]))
        files.append(bytes(data[: len(data) - int(rng.integers(0, 30)) * int(rng.integers(0, 2))]))
    made = jpegs.crops(files, 24, (0.9, 1.0), crop_draws(0, np.arange(len(files))))
    assert 30 < sum(pixels is None for pixels in made) < 270
    for data, pixels in zip(files, made, strict=True):
        try:
            decode(data)
        except DecodeError:
            assert pixels is None


@pytest.mark.skipif(not torch.cuda.is_available(), reason="nvJPEG needs a GPU")
def test_nvjpeg_shows_the_same_samples(folder: str) -> None:
    """Pixels as near as torchvision's own tests ask of nvJPEG, whose cosine transform and chroma are not libjpeg's."""
    expected, made = _batches(folder, 0, 7)[0], _batches(folder, 0, 7, JpegDevice(torch.device("cuda", 0)))[0]
    for left, right in zip(expected, made, strict=True):
        assert left.sample_ids == right.sample_ids
        assert torch.equal(left.token_ids, right.token_ids)
        assert right.images.is_cuda
        assert (left.images.float() - right.images.cpu().float()).abs().mean() < 2


def test_a_device_that_cannot_is_named(folder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert jpeg_device(CONFIG, CPU) is None
    asking = replace(CONFIG, jpeg_device="cuda")
    with pytest.raises(ValueError, match=r"data\.jpeg_device is cuda, but this process trains on cpu"):
        jpeg_device(asking, CPU)
    with pytest.raises(ValueError, match=r"data\.jpeg_device is cuda; the loader was given no device"):
        LaneLoader(folder, asking, image_size=24, context_length=16, seed=0)
    with pytest.raises(ValueError, match=r"data\.jpeg_device is 'tpu'; it has to be cuda, or None"):
        replace(CONFIG, jpeg_device="tpu")  # type: ignore[arg-type]

    def without(*_: object, **__: object) -> None:
        raise RuntimeError("not compiled with nvJPEG support")

    monkeypatch.setattr(module, "decode_jpeg", without)
    with pytest.raises(ValueError, match="JPEGs cannot be decoded on cpu: not compiled with nvJPEG"):
        JpegDevice(CPU)
