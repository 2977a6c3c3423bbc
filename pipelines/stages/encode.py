"""Pictures as shards hold them: decodable, upright, opaque, JPEG, PNG or WebP, no side longer than asked for."""

import io
from dataclasses import dataclass
from typing import Literal

from PIL import Image, ImageOps

Format = Literal["keep", "jpeg", "webp", "png"]
PASSED = ("JPEG", "PNG", "WEBP")
"""Formats that the loader reads."""
PLAIN = ("RGB", "L")
"""Pixel modes that need no conversion; every other one becomes RGB."""
ORIENTATION = 0x0112
"""EXIF tag: how the camera was held."""

REASONS = ("undecodable image", "too many pixels")


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


def encode(data: bytes, encoding: Encoding) -> bytes:
    """The picture as it is stored: the same bytes where nothing has to change. Raises UnusableImageError.

    Every pixel is decoded here, so that no training step meets a broken file.
    """
    try:
        with Image.open(io.BytesIO(data)) as picture:
            if picture.width * picture.height > encoding.max_pixels:
                raise UnusableImageError("too many pixels")
            return _encode(picture, data, encoding)
    except Image.DecompressionBombError as error:
        raise UnusableImageError("too many pixels") from error
    except UnusableImageError:
        raise
    except Exception as error:  # Pillow raises OSError, SyntaxError, ValueError, struct.error and more on broken files
        raise UnusableImageError("undecodable image") from error


def _encode(picture: Image.Image, data: bytes, encoding: Encoding) -> bytes:
    source = picture.format
    large = max(picture.size) > encoding.max_side
    turned = picture.getexif().get(ORIENTATION, 1) != 1
    if large and source == "JPEG":
        picture.draft("RGB", (encoding.max_side, encoding.max_side))  # decodes at a half, quarter or eighth of the size
    picture.load()
    wanted = encoding.format.upper() if encoding.format != "keep" else source if source in PASSED else "PNG"
    if source == wanted and not large and not turned and _plain(picture):
        return data
    pixels = _opaque(ImageOps.exif_transpose(picture))
    if large:
        pixels.thumbnail((encoding.max_side, encoding.max_side), Image.Resampling.LANCZOS)
    target = io.BytesIO()
    options = {} if wanted == "PNG" else {"quality": encoding.quality}
    pixels.save(target, wanted, **options)
    return target.getvalue()


def _plain(picture: Image.Image) -> bool:
    return (picture.mode in PLAIN or picture.mode == "P") and "transparency" not in picture.info


def _opaque(picture: Image.Image) -> Image.Image:
    """RGB or grey pixels; what is transparent lies on white."""
    if picture.mode in ("RGBA", "LA", "PA") or "transparency" in picture.info:
        layer = picture.convert("RGBA")
        ground = Image.new("RGBA", layer.size, "white")
        return Image.alpha_composite(ground, layer).convert("RGB")
    return picture if picture.mode in PLAIN else picture.convert("RGB")
