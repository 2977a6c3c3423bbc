"""Decoding, crops and normalisation, against Pillow, torchvision and open_clip."""

import io

import numpy as np
import open_clip
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_sample_images
from torch import Tensor
from torchcodec.decoders import decode_image
from torchvision.transforms import InterpolationMode, RandomResizedCrop
from torchvision.transforms import functional as reference

from llip.data import draws
from llip.data.transforms import (
    DecodeError,
    crop_draws,
    decode,
    evaluation_transform,
    normalize,
    random_crop,
    training_transform,
)


@pytest.fixture(scope="module")
def photo() -> Image.Image:
    return Image.fromarray(load_sample_images().images[0]).resize((160, 107))


def _encode(image: Image.Image, kind: str, **options: object) -> bytes:
    target = io.BytesIO()
    image.save(target, kind, **options)
    return target.getvalue()


def _with_pillow(data: bytes) -> Tensor:
    image = Image.open(io.BytesIO(data)).convert("RGBA")
    white = Image.new("RGBA", image.size, "white")
    return torch.from_numpy(np.array(Image.alpha_composite(white, image).convert("RGB"))).permute(2, 0, 1)


@pytest.mark.parametrize(
    ("kind", "mode"),
    [
        *[
            ("PNG", m)
            for m in ("RGB", "L", "P", "1", "LA", "RGBA", "transparent P", "transparent RGB", "transparent L")
        ],
        *[("WEBP", m) for m in ("RGB", "RGBA")],
        *[("JPEG", m) for m in ("RGB", "L", "CMYK")],
    ],
)
def test_every_kind_of_image_is_decoded_to_rgb_on_white(photo: Image.Image, kind: str, mode: str) -> None:
    options: dict[str, object] = {"lossless": True} if kind == "WEBP" else {}
    image = photo.convert(mode.removeprefix("transparent "))
    if mode.endswith("A"):
        image.putalpha(Image.linear_gradient("L").resize(image.size))
    if mode.startswith("transparent"):
        options = {"transparency": 3 if mode.endswith("P") else image.getpixel((5, 5))}
    data = _encode(image, kind, **options)
    pixels = decode(data)
    assert pixels.dtype == torch.uint8
    assert (pixels.int() - _with_pillow(data).int()).abs().max() <= 1


TURNED = Image.Exif()
TURNED[0x0112] = 6


@pytest.mark.parametrize(
    ("mode", "options"),
    [
        *[("RGB", {"subsampling": way, "quality": quality}) for way in (0, 1, 2) for quality in (10, 95)],
        ("RGB", {"progressive": True}),
        ("RGB", {"exif": TURNED}),
        ("L", {}),
        ("L", {"exif": TURNED}),
        ("CMYK", {}),
    ],
)
def test_jpeg_has_the_pixels_of_torchcodec(photo: Image.Image, mode: str, options: dict[str, object]) -> None:
    data = _encode(photo.resize((133, 77)).convert(mode), "JPEG", **options)
    pixels = decode_image(torch.frombuffer(bytearray(data), dtype=torch.uint8), mode="RGB")
    assert torch.equal(decode(data), pixels)
    assert (pixels.shape[1] > pixels.shape[2]) == ("exif" in options)


def test_sixteen_bit_grey_keeps_its_range() -> None:
    grey = np.linspace(0, 65535, 64, dtype=np.uint16).reshape(8, 8)
    pixels = decode(_encode(Image.fromarray(grey), "PNG"))
    assert (pixels[0].int() - torch.from_numpy(grey.astype(np.int32) // 257)).abs().max() <= 1


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "JPEG"])
def test_a_broken_image_is_a_decode_error(photo: Image.Image, kind: str) -> None:
    data = _encode(photo, kind)
    for broken in (b"", b"no image", data[:30], data[: len(data) // 2], data[:-200]):
        with pytest.raises(DecodeError):
            decode(broken)


def test_damaged_files_never_end_the_process(photo: Image.Image) -> None:
    """Decoders in C have done that: a file is damaged at 300 places, and either decodes or is an error."""
    rng = np.random.default_rng(0)
    errors = 0
    for kind in ("PNG", "WEBP", "JPEG"):
        intact = _encode(photo.resize((48, 32)), kind)
        for _ in range(100):
            data = bytearray(intact)
            start = rng.integers(len(data))
            data[start : start + 20] = rng.bytes(len(data[start : start + 20]))
            try:
                assert decode(bytes(data)).dtype == torch.uint8
            except DecodeError:
                errors += 1
    assert errors >= 50


def test_a_crop_has_the_distribution_of_torchvision() -> None:
    torch.manual_seed(0)
    boxes = {
        "ours": [random_crop(100, 130, (0.5, 1.0), n) for n in crop_draws(0, np.arange(4000))],
        "torchvision": [
            RandomResizedCrop.get_params(torch.empty(3, 100, 130), [0.5, 1.0], [3 / 4, 4 / 3]) for _ in range(4000)
        ],
    }
    ours, theirs = (np.array(boxes[name], dtype=float) for name in ("ours", "torchvision"))
    for of_ours, of_theirs in zip(ours.T, theirs.T, strict=True):
        error = 5 * np.hypot(of_ours.std(), of_theirs.std()) / np.sqrt(4000)
        assert abs(of_ours.mean() - of_theirs.mean()) < error
        np.testing.assert_allclose(
            np.quantile(of_ours, [0.1, 0.5, 0.9]), np.quantile(of_theirs, [0.1, 0.5, 0.9]), atol=3
        )


@pytest.mark.parametrize(("height", "width"), [(1, 1), (48, 48), (300, 20), (20, 300), (1, 500)])
def test_a_crop_lies_inside_the_image(height: int, width: int) -> None:
    for numbers in crop_draws(1, np.arange(200)):
        top, left, h, w = random_crop(height, width, (0.9, 1.0), numbers)
        assert h > 0
        assert w > 0
        assert 0 <= top <= height - h
        assert 0 <= left <= width - w


def test_a_training_image_is_the_resized_crop(photo: Image.Image) -> None:
    data = _encode(photo, "PNG")
    for numbers in crop_draws(2, draws.CROP, np.arange(5)):
        box = random_crop(photo.height, photo.width, (0.3, 0.6), numbers)
        expected = reference.resized_crop(decode(data), *box, [48, 48], InterpolationMode.BICUBIC, antialias=True)
        difference = training_transform(data, 48, (0.3, 0.6), numbers).int() - expected.int()
        assert difference.abs().max() <= 1  # torchvision resizes in floating point
        assert difference.abs().float().mean() < 0.2


@pytest.mark.parametrize("size", [(160, 107), (107, 160), (48, 48), (30, 41)])
def test_an_evaluation_image_is_that_of_open_clip(photo: Image.Image, size: tuple[int, int]) -> None:
    data = _encode(photo.resize(size), "PNG")
    expected = open_clip.image_transform(48, is_train=False)(Image.open(io.BytesIO(data)))
    ours = normalize(evaluation_transform(data, 48)[None])[0]
    levels = (ours - expected).abs() * torch.tensor([0.2686, 0.2613, 0.2758]).view(3, 1, 1) * 255
    assert levels.max() < 2.1  # Pillow and torch round their filters differently
    assert levels.mean() < 0.4


def test_normalisation_is_that_of_openai() -> None:
    pixels = torch.randint(0, 256, (2, 3, 5, 7), dtype=torch.uint8)
    mean, std = open_clip.OPENAI_DATASET_MEAN, open_clip.OPENAI_DATASET_STD
    torch.testing.assert_close(normalize(pixels), reference.normalize(pixels / 255, mean, std))
    assert normalize(pixels, torch.bfloat16).dtype == torch.bfloat16
