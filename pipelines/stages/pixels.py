"""Encoded images to pixels by Pillow: upright, 8 bits a channel, opaque, whatever their metadata holds."""

import io
from collections.abc import Callable
from typing import TypeVar

import numpy as np
from PIL import Image, ImageOps

from pipelines.stages.bare import without_metadata

T = TypeVar("T")

UNDECODABLE, TOO_LARGE = "undecodable image", "too many pixels"
DAMAGED = "damaged image"
NO_RANGE = "pixels of unknown range"
PLAIN = ("RGB", "L")
"""Pixel modes that need no conversion; every other one becomes RGB."""
STRAIGHT = {"RGBa": "RGBA", "La": "LA"}
"""Modes whose colours are multiplied by their opacity, as those where they are not."""
ORIENTATION = 0x0112
"""EXIF tag: how the camera was held."""
TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""Transposition that makes an image of each orientation upright."""
BITS_PER_SAMPLE, PHOTOMETRIC = 258, 262
"""TIFF tags."""


class UnusableImageError(Exception):
    """An image that cannot be used; its message is the reason, one of few."""


def read(data: bytes, use: Callable[[Image.Image, bytes], T]) -> T:
    """Result of `use` for an opened image and its bytes, which lose their metadata where Pillow fails on it.

    Raises UnusableImageError, also for whatever goes wrong in `use`.
    """
    try:
        return _read(data, use)
    except UnusableImageError as error:
        if str(error) != UNDECODABLE or (bare := without_metadata(data)) is None:
            raise
        return _read(bare, use)


def _read(data: bytes, use: Callable[[Image.Image, bytes], T]) -> T:
    try:
        with Image.open(io.BytesIO(data)) as image:
            return use(image, data)
    except UnusableImageError:
        raise
    except Image.DecompressionBombError as error:
        raise UnusableImageError(TOO_LARGE) from error
    except Exception as error:  # Pillow raises OSError, SyntaxError, ValueError, struct.error and more on broken files
        raise UnusableImageError(UNDECODABLE) from error


def size(data: bytes) -> tuple[int, int]:
    """Width and height of an encoded image, pixels, by its header. Raises UnusableImageError."""
    return read(data, lambda image, _: image.size)


def orientation(image: Image.Image) -> int | None:
    """Orientation of the camera, 1 to 8; 1, upright, where EXIF does not say it; None where it cannot be read."""
    try:
        value = image.getexif().get(ORIENTATION)
    except Exception:  # of as many kinds as there are ways to break EXIF, which is no part of the image
        return None
    return value if isinstance(value, int) and value in TURNS else 1


def pixels(image: Image.Image) -> Image.Image:
    """RGB or grey pixels, upright; what is transparent lies on white. Raises UnusableImageError."""
    image.load()
    turn = orientation(image)  # after loading, in which Pillow turns TIFF files itself
    plain = opaque(_eight_bits(image) if image.mode.startswith(("I", "F")) else image)
    upright = plain.transpose(TURNS[turn]) if turn in TURNS else plain
    upright.info = {}  # else a broken profile would be stored again
    return upright


def opaque(image: Image.Image) -> Image.Image:
    """RGB or grey pixels of an image of 8 bits; what is transparent lies on white."""
    image = image.convert(STRAIGHT[image.mode]) if image.mode in STRAIGHT else image
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        layer = image.convert("RGBA")
        ground = Image.new("RGBA", layer.size, "white")
        return Image.alpha_composite(ground, layer).convert("RGB")
    return image if image.mode in PLAIN else image.convert("RGB")


def _eight_bits(image: Image.Image) -> Image.Image:
    """Grey pixels of more than 8 bits, scaled by the range of their type: Pillow itself would cut them off at 255.

    Raises UnusableImageError for 32 bits and floating point, where files do not say which value is white.
    """
    bits, tags = 16, getattr(image, "tag_v2", {})
    if image.mode.startswith("I;16"):
        bits = max(tags.get(BITS_PER_SAMPLE, (bits,)))
    elif image.format != "PPM":  # whose values Pillow scales to 16 bits
        raise UnusableImageError(NO_RANGE)
    white = (1 << bits) - 1
    levels = ((np.arange(white + 1) * 255 + white // 2) // white).astype(np.uint8)
    values = np.asarray(image)
    grey = levels[np.minimum(values, white)]
    if (key := image.info.get("transparency")) is not None:
        grey[values == key] = 255
    result = Image.fromarray(grey)
    return ImageOps.invert(result) if tags.get(PHOTOMETRIC) == 0 else result
