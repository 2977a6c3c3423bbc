"""Images for a vision tower: bytes to pixels, a random crop in training, the centre in evaluation, and normalisation on
the device."""

import math
from collections.abc import Sequence
from functools import cache

import numpy as np
import simplejpeg
import torch
from numpy.typing import ArrayLike
from torch import Tensor
from torch.nn import functional
from torchcodec.decoders import decode_image

from llip.config import PreprocessConfig
from llip.data import draws

OPENAI = PreprocessConfig()

_ATTEMPTS = 10
_CROP_DRAWS = np.arange(2 * _ATTEMPTS + 2)
_LOG_RATIO = math.log(3 / 4), math.log(4 / 3)

Box = tuple[int, int, int, int]
"""top, left, height, width in pixels."""

Encoded = bytes | memoryview


class DecodeError(ValueError):
    """The bytes are not an image, or a broken one."""


def decode(data: Encoded) -> Tensor:
    """RGB pixels, uint8 [3, H, W]; transparency is laid on white. Raises DecodeError."""
    data = bytes(data)
    is_jpeg = data.startswith(b"\xff\xd8\xff")
    if is_jpeg and (decoded := _plain_jpeg(data)) is not None:
        return decoded
    # A tensor, since of bytes torchcodec changes the filters of `warnings` for a moment, which is not safe in threads.
    source = torch.from_numpy(np.frombuffer(data, dtype=np.uint8).copy())
    try:
        # A JPEG's four channels are inks. Elsewhere channels tell of transparency, but for the chunk tRNS of a PNG.
        pixels = decode_image(source, mode="RGB" if is_jpeg else "UNCHANGED")
        if pixels.ndim == 4:
            raise DecodeError("an animation, not an image")
        if len(pixels) in (2, 4) or (not is_jpeg and b"tRNS" in data[: data.find(b"IDAT")]):
            return _on_white(decode_image(source, mode="RGB_ALPHA"))
    except (RuntimeError, ValueError) as error:
        raise DecodeError(f"not a readable image: {error}") from error
    return pixels.expand(3, -1, -1)


def _plain_jpeg(data: bytes) -> Tensor | None:
    """The same pixels as torchcodec's, sooner. None for damage, for inks, and where EXIF may say to turn the image."""
    if b"Exif\0" in data:
        return None
    try:
        if simplejpeg.decode_jpeg_header(data)[2] in ("CMYK", "YCCK"):
            return None
        return torch.from_numpy(simplejpeg.decode_jpeg(data, "RGB")).permute(2, 0, 1)
    except ValueError:
        return None


def _on_white(pixels: Tensor) -> Tensor:
    rgba_HWC = pixels.permute(1, 2, 0).numpy().astype(np.int32)  # not torch, which would start threads
    rgb_HWC, alpha_HW1 = rgba_HWC[..., :3], rgba_HWC[..., 3:]
    mixed = (rgb_HWC * alpha_HW1 + 255 * (255 - alpha_HW1) + 127) // 255
    return torch.from_numpy(mixed.astype(np.uint8)).permute(2, 0, 1)


def crop_draws(*keys: ArrayLike) -> list[list[float]]:
    """The random numbers of crops. Keys are numbers, or arrays with one number for every crop."""
    return draws.uniform(draws.CROP, *(draws.column(k) for k in keys), _CROP_DRAWS).tolist()


def random_crop(height: int, width: int, scale: tuple[float, float], numbers: Sequence[float]) -> Box:
    """The crop of an Inception-style RandomResizedCrop: an area in `scale`, a ratio of sides in [3/4, 4/3].

    `numbers` are 22 uniform draws: ten pairs for area and ratio, of which the first that fits is taken, and two for the
    position. Where none fits, the centre is taken, cut to a permitted ratio.
    """
    low, high = _LOG_RATIO
    for u, v in zip(numbers[0 : 2 * _ATTEMPTS : 2], numbers[1 : 2 * _ATTEMPTS : 2], strict=True):
        area = height * width * (scale[0] + u * (scale[1] - scale[0]))
        ratio = math.exp(low + v * (high - low))
        w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < w <= width and 0 < h <= height:
            return int(numbers[-2] * (height - h + 1)), int(numbers[-1] * (width - w + 1)), h, w
    w = max(1, min(width, round(height * math.exp(high))))
    h = max(1, min(height, round(width / math.exp(low))))
    return (height - h) // 2, (width - w) // 2, h, w


def resize(pixels: Tensor, height: int, width: int, interpolation: str = "bicubic") -> Tensor:
    """Antialiased resizing of uint8 [3, H, W]."""
    if pixels.shape[1:] == (height, width):
        return pixels
    # torch resizes dense channels-last pixels at once; others it would copy first, with a team of OpenMP threads for
    # every thread that decodes. numpy copies without one.
    dense = torch.from_numpy(np.ascontiguousarray(pixels.permute(1, 2, 0).numpy())).permute(2, 0, 1)
    return functional.interpolate(dense[None], (height, width), mode=interpolation, antialias=True)[0]


def training_transform(data: Encoded, image_size: int, scale: tuple[float, float], numbers: Sequence[float]) -> Tensor:
    """A random crop of an encoded image, uint8 [3, S, S] with S = `image_size`. Raises DecodeError."""
    pixels = decode(data)
    top, left, height, width = random_crop(pixels.shape[1], pixels.shape[2], scale, numbers)
    return resize(pixels[:, top : top + height, left : left + width], image_size, image_size)


def evaluation_transform(data: Encoded, image_size: int, config: PreprocessConfig = OPENAI) -> Tensor:
    """The centre of an encoded image after it is resized, uint8 [3, S, S] with S = `image_size`. Raises DecodeError."""
    pixels = decode(data)
    height, width = pixels.shape[1:]
    match config.resize:
        case "shortest":
            height, width = (int(image_size * side / min(height, width)) for side in (height, width))
        case "longest":
            height, width = (max(1, round(image_size * side / max(height, width))) for side in (height, width))
        case "squash":
            height, width = image_size, image_size
    pixels = resize(pixels, height, width, config.interpolation)
    if config.resize == "longest":
        top, left = (image_size - height) // 2, (image_size - width) // 2
        borders = (left, image_size - width - left, top, image_size - height - top)
        return functional.pad(pixels, borders, value=config.fill)
    top, left = round((height - image_size) / 2), round((width - image_size) / 2)
    return pixels[:, top : top + image_size, left : left + image_size]


def normalize(pixels: Tensor, dtype: torch.dtype = torch.float32, config: PreprocessConfig = OPENAI) -> Tensor:
    """uint8 [B, 3, H, W] to zero mean and unit variance in `dtype`, on the device where the pixels lie."""
    mean, std = _statistics(pixels.device, config)
    return pixels.float().div_(255).sub_(mean).div_(std).to(dtype)


@cache
def _statistics(device: torch.device, config: PreprocessConfig) -> tuple[Tensor, Tensor]:
    """Mean and deviation, [3, 1, 1]; kept, since a copy to the device makes it wait."""
    return torch.tensor(config.mean, device=device).view(3, 1, 1), torch.tensor(config.std, device=device).view(3, 1, 1)
