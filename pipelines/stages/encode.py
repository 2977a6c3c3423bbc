"""Pictures as shards hold them: decodable, upright, opaque, JPEG, PNG or WebP, no side longer than asked for."""

import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from PIL import Image, ImageFilter, ImageOps

Format = Literal["keep", "jpeg", "webp", "png"]
PASSED = ("JPEG", "PNG", "WEBP")
"""Formats that the loader reads."""
PLAIN = ("RGB", "L")
"""Pixel modes that need no conversion; every other one becomes RGB."""
ORIENTATION = 0x0112
"""EXIF tag: how the camera was held."""

REASONS = ("undecodable image", "too many pixels", "unusable boxes")
Box = Sequence[float]
"""Left, top, right, bottom of a part of a picture as it is seen, as shares of its width and height."""
BLUR = 0.1
"""By how much of its diagonal a box is widened, and the deviation of the Gaussian that blurs it."""


class UnusableImageError(Exception):
    """An image that cannot be put into a shard; its message is one of REASONS."""


@dataclass(frozen=True, kw_only=True)
class Encoding:
    """How pictures are stored."""

    max_side: int
    """Longest side, pixels; larger pictures are scaled down."""
    format: Format
    """keep: as it came where possible."""
    quality: int
    """Of JPEG and WebP, 1 to 100."""
    max_pixels: int
    """Pictures with more are not decoded: a small file can unpack to more than the memory of the machine."""


def encode(data: bytes, encoding: Encoding, boxes: Sequence[Box] = ()) -> bytes:
    """The picture as it is stored, with some boxes (faces) blurred: the same bytes where nothing has to change.

    Raises UnusableImageError. Every pixel is decoded here, so that no training step meets a broken file.
    """
    try:
        with Image.open(io.BytesIO(data)) as picture:
            if picture.width * picture.height > encoding.max_pixels:
                raise UnusableImageError("too many pixels")
            return _encode(picture, data, encoding, boxes)
    except Image.DecompressionBombError as error:
        raise UnusableImageError("too many pixels") from error
    except UnusableImageError:
        raise
    except Exception as error:  # Pillow raises OSError, SyntaxError, ValueError, struct.error and more on broken files
        raise UnusableImageError("undecodable image") from error


def _encode(picture: Image.Image, data: bytes, encoding: Encoding, boxes: Sequence[Box]) -> bytes:
    source = "JPEG" if picture.format == "MPO" else picture.format  # a JPEG with further ones behind it, as of phones
    large = max(picture.size) > encoding.max_side
    turned = picture.getexif().get(ORIENTATION, 1) != 1
    if large and source == "JPEG":  # decoded at a half, quarter or eighth of its size where that is enough
        picture.thumbnail((encoding.max_side, encoding.max_side), Image.Resampling.LANCZOS, reducing_gap=1.0)
    picture.load()
    wanted = encoding.format.upper() if encoding.format != "keep" else source if source in PASSED else "PNG"
    if source == wanted and not large and not turned and not boxes and _plain(picture):
        return data
    pixels = opaque(ImageOps.exif_transpose(picture))
    if large:
        pixels.thumbnail((encoding.max_side, encoding.max_side), Image.Resampling.LANCZOS)
    for box in boxes:
        _blur(pixels, box)
    target = io.BytesIO()
    options = {} if wanted == "PNG" else {"quality": encoding.quality}
    pixels.save(target, wanted, **options)
    return target.getvalue()


def _blur(picture: Image.Image, box: Box) -> None:
    """Blur a part of a picture in place, as Yang et al. (A Study of Face Obfuscation in ImageNet, ICML 2022) do."""
    if len(box) != 4 or not (box[0] <= box[2] and box[1] <= box[3]):
        raise UnusableImageError("unusable boxes")
    left, top, right, bottom = (edge * side for edge, side in zip(box, picture.size * 2, strict=True))
    margin = BLUR * ((right - left) ** 2 + (bottom - top) ** 2) ** 0.5
    region = (
        max(0, int(left - margin)),
        max(0, int(top - margin)),
        min(picture.width, int(right + margin) + 1),
        min(picture.height, int(bottom + margin) + 1),
    )
    picture.paste(picture.crop(region).filter(ImageFilter.GaussianBlur(margin)), region)


def _plain(picture: Image.Image) -> bool:
    return (picture.mode in PLAIN or picture.mode == "P") and "transparency" not in picture.info


def opaque(picture: Image.Image) -> Image.Image:
    """RGB or grey pixels; what is transparent lies on white."""
    if picture.mode in ("RGBA", "LA", "PA") or "transparency" in picture.info:
        layer = picture.convert("RGBA")
        ground = Image.new("RGBA", layer.size, "white")
        return Image.alpha_composite(ground, layer).convert("RGB")
    return picture if picture.mode in PLAIN else picture.convert("RGB")
