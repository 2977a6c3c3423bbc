"""Images as shards hold them: decodable, upright, opaque, JPEG, PNG or WebP, no side longer than asked for."""

import io
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import simplejpeg
from PIL import Image, ImageFilter

from llip.data.transforms import DecodeError, decode
from pipelines.stages.bare import without_metadata
from pipelines.stages.options import Format
from pipelines.stages.pixels import (
    DAMAGED,
    PLAIN,
    TOO_LARGE,
    UNDECODABLE,
    UnusableImageError,
    orientation,
    pixels,
    read,
)

PASSED = ("JPEG", "PNG", "WEBP")
"""Formats that the loader reads."""
DAMAGE = re.compile("Corrupt JPEG data: (?!bad ICC marker)|Premature end of JPEG file")
"""libjpeg's warnings of damaged pixels."""
PROFILE = "bad ICC marker"
"""libjpeg's warning of a damaged colour profile, whose text begins like those of damaged pixels."""
EXTRANEOUS = re.compile(r"Corrupt JPEG data: (\d+) extraneous bytes before marker 0xd9")
"""Bytes between the last pixel and the mark of the end."""
Box = Sequence[float]
"""Left, top, right, bottom of a part of an image as it is seen, as shares of its width and height."""
BLUR = 0.1
"""By how much of its diagonal a box is widened, and the deviation of the Gaussian that blurs it."""


@dataclass(frozen=True, kw_only=True)
class Encoding:
    """Form in which images are stored."""

    max_side: int
    """Longest side, pixels; larger images are scaled down."""
    format: Format
    """keep: as it came where possible."""
    quality: int
    """Quality of JPEG and WebP, 1 to 100."""
    max_pixels: int
    """Images with more are not decoded: a small file can unpack to more than the memory of the machine."""


def encode(data: bytes, encoding: Encoding, boxes: Sequence[Box] = ()) -> bytes:
    """The image as it is stored, with some boxes (faces) blurred: the same bytes where nothing has to change.

    Raises UnusableImageError. An image that is stored as it came has been decoded as the loader does it, and every JPEG
    has been read to its end. So no training step meets an unreadable file or a part of a damaged image.
    """
    return read(data, partial(_stored, encoding=encoding, boxes=boxes))


def _stored(image: Image.Image, data: bytes, encoding: Encoding, boxes: Sequence[Box]) -> bytes:
    if image.width * image.height > encoding.max_pixels:
        raise UnusableImageError(TOO_LARGE)
    source = "JPEG" if image.format == "MPO" else image.format  # a JPEG with further ones behind it, as of phones
    wanted = encoding.format.upper() if encoding.format != "keep" else source if source in PASSED else "PNG"
    large = max(image.size) > encoding.max_side
    unchanged = source == wanted and not large and not boxes and _plain(image)
    if unchanged and source != "JPEG":  # Pillow may yet fail on what lies behind the pixels, as others with it would
        image.load()
    if source == "JPEG":  # Pillow shows what is left of a damaged one
        warning = _first_warning(data)
        if (unchanged or warning) and not _is_loadable(data):
            raise UnusableImageError(UNDECODABLE)
        if _is_damage(warning, data):
            raise UnusableImageError(DAMAGED)
    if unchanged and orientation(image) == 1 and (source == "JPEG" or _is_loadable(data)):
        return data
    if large and source == "JPEG":  # decoded at a half, quarter or eighth of its size where that is enough
        image.thumbnail((encoding.max_side, encoding.max_side), Image.Resampling.LANCZOS, reducing_gap=1.0)
    result = pixels(image)
    if large:
        result.thumbnail((encoding.max_side, encoding.max_side), Image.Resampling.LANCZOS)
    for box in boxes:
        _blur(result, box)
    target = io.BytesIO()
    options = {} if wanted == "PNG" else {"quality": encoding.quality}
    result.save(target, wanted, **options)
    return target.getvalue()


def _is_loadable(data: bytes) -> bool:
    try:
        decode(data)
    except DecodeError:  # damage, or an animation, of which the first image is taken
        return False
    return True


def _is_damage(warning: str, data: bytes) -> bool:
    """Whether the data of a JPEG that decodes is not that of its pixels: cut off, overwritten, or out of step.

    libjpeg goes on from there with what it has, grey or shifted blocks, and warns. It warns of padding too.
    """
    if PROFILE in warning:  # behind which no other one is told
        warning = _first_warning(without_metadata(data) or data)
    if padding := EXTRANEOUS.search(warning):
        return not re.search(rb"(\x00{%s}|\xff{%s})\xff\xd9" % (2 * (padding[1].encode(),)), data)
    return DAMAGE.search(warning) is not None


def _first_warning(data: bytes) -> str:
    """First warning of libjpeg about a JPEG; empty where there is none."""
    try:
        space = "CMYK" if simplejpeg.decode_jpeg_header(data)[2] in ("CMYK", "YCCK") else "GRAY"
        simplejpeg.decode_jpeg(data, space, min_height=1, min_width=1)  # at an eighth: little but the reading is left
    except ValueError as error:
        return str(error)
    return ""


def _blur(image: Image.Image, box: Box) -> None:
    """Blur a part of an image in place, as Yang et al. (A Study of Face Obfuscation in ImageNet, ICML 2022) do."""
    if len(box) != 4 or not (box[0] <= box[2] and box[1] <= box[3]):
        raise UnusableImageError("unusable boxes")
    left, top, right, bottom = (edge * side for edge, side in zip(box, image.size * 2, strict=True))
    margin = BLUR * ((right - left) ** 2 + (bottom - top) ** 2) ** 0.5
    region = (
        max(0, int(left - margin)),
        max(0, int(top - margin)),
        min(image.width, int(right + margin) + 1),
        min(image.height, int(bottom + margin) + 1),
    )
    image.paste(image.crop(region).filter(ImageFilter.GaussianBlur(margin)), region)


def _plain(image: Image.Image) -> bool:
    return (image.mode in PLAIN or image.mode == "P") and "transparency" not in image.info
