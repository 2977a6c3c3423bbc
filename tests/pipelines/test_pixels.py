"""Images of every mode and with every broken metadata: what is stored shows the image, as the loader decodes it."""

import io
import struct
import warnings
import zlib
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from llip.data.transforms import DecodeError, decode
from pipelines.stages.dedup.fingerprint import perceptual
from pipelines.stages.encode import Encoding, encode
from pipelines.stages.filter import rules
from pipelines.stages.pixels import UnusableImageError, pixels

ENCODING = Encoding(max_side=64, format="keep", quality=95, max_pixels=10**6)
WEBP = replace(ENCODING, max_side=40, format="webp")
RAMP = np.linspace(0, 1, 16 * 24).reshape(16, 24)
GREY = np.round(255 * RAMP).astype(np.uint8)
COLOURS = np.dstack([GREY, GREY[::-1], 255 - GREY])
PICTURE = Image.fromarray(COLOURS)


def saved(image: Image.Image, kind: str, **options: Any) -> bytes:
    target = io.BytesIO()
    image.save(target, kind, **options)
    return target.getvalue()


def shown(data: bytes, encoding: Encoding = ENCODING) -> np.ndarray:
    """What training sees of an image after sharding, [H, W, 3]; Pillow sees the same."""
    stored = encode(data, encoding)
    seen = decode(stored).permute(1, 2, 0).numpy().astype(int)
    by_pillow = np.asarray(Image.open(io.BytesIO(stored)).convert("RGB")).astype(int)
    assert np.abs(seen - by_pillow).max() <= 1
    return seen


def near(seen: np.ndarray, expected: np.ndarray, levels: float = 4) -> bool:
    expected = expected if expected.ndim == 3 else expected[..., None]
    return seen.shape[:2] == expected.shape[:2] and float(np.abs(seen - expected).mean()) <= levels


def tiff(values: np.ndarray, *, bits: int = 16, white_is_zero: bool = False) -> bytes:
    """Grey TIFF of one strip, little-endian."""
    rows = values.astype("<u2").tobytes()
    if bits == 12:
        pairs = values.reshape(-1, 2).astype(int)
        packed = np.stack([pairs[:, 0] >> 4, (pairs[:, 0] & 15) << 4 | pairs[:, 1] >> 8, pairs[:, 1] & 255], 1)
        rows = packed.astype(np.uint8).tobytes()
    height, width = values.shape
    tags = [(256, width), (257, height), (258, bits), (259, 1), (262, 0 if white_is_zero else 1), (273, 0), (277, 1)]
    tags += [(278, height), (279, len(rows))]
    offset = 8 + 2 + 12 * len(tags) + 4
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, offset if tag == 273 else value) for tag, value in tags)
    return b"II*\0" + struct.pack("<IH", 8, len(tags)) + entries + struct.pack("<I", 0) + rows


SIXTEEN = np.round(65535 * RAMP).astype(np.uint16)
DEEP = {
    "png": saved(Image.fromarray(SIXTEEN), "PNG"),
    "tiff": saved(Image.fromarray(SIXTEEN), "TIFF"),
    "tiff, big-endian": saved(Image.fromarray(SIXTEEN).convert("I").convert("I;16B"), "TIFF"),
    "tiff, 12 bits": tiff(SIXTEEN >> 4, bits=12),
    "tiff, white is zero": tiff(65535 - SIXTEEN, white_is_zero=True),
    "pgm": saved(Image.fromarray(SIXTEEN), "PPM"),
}


@pytest.mark.parametrize("name", DEEP)
@pytest.mark.parametrize("max_side", [64, 12])
def test_deep_grey_pictures_are_scaled_by_their_range(name: str, max_side: int) -> None:
    encoding = Encoding(max_side=max_side, format="keep", quality=95, max_pixels=10**6)
    expected = np.asarray(Image.fromarray(GREY).resize((12, 8))) if max_side == 12 else GREY
    assert near(shown(DEEP[name], encoding), expected, 1 if max_side == 64 else 5)


UNKNOWN: dict[str, np.ndarray] = {
    "0 to 1": RAMP,
    "0 to 255": 255 * RAMP,
    "-1 to 1": 2 * RAMP - 1,
    "nan": np.nan * RAMP,
    "int32": np.round(65535 * RAMP).astype(np.int32),
    "large int32": (2**30 * RAMP).astype(np.int32),
}


@pytest.mark.parametrize("name", UNKNOWN)
def test_pictures_without_a_known_white_are_dropped(name: str) -> None:
    values = UNKNOWN[name]
    image = Image.fromarray(values.astype(np.float32) if values.dtype == np.float64 else values)
    with pytest.raises(UnusableImageError, match="pixels of unknown range"):
        encode(saved(image, "TIFF"), ENCODING)


@pytest.mark.parametrize("kind", ["plain", "turned", "with restarts", "progressive", "CMYK"])
def test_a_damaged_jpeg_is_dropped_however_it_would_be_stored(kind: str) -> None:
    turned = Image.Exif()
    turned[0x0112] = 6
    options: dict[str, dict[str, Any]] = {"turned": {"exif": turned}, "with restarts": {"restart_marker_blocks": 3}}
    rng = np.random.default_rng(0)
    image = Image.fromarray(rng.integers(0, 255, (20, 20, 3), np.uint8)).resize((160, 160))
    data = saved(
        image.convert("CMYK" if kind == "CMYK" else "RGB"),
        "JPEG",
        progressive=kind == "progressive",
        **options.get(kind, {}),
    )
    refused = 0
    for place in rng.integers(len(data) // 4, len(data), 40).tolist():
        damaged = data[:place] + rng.bytes(20).replace(b"\0", b"\xff") + data[place + 20 :]
        try:
            decode(damaged)
        except DecodeError:
            refused += 1
            for encoding in (replace(ENCODING, max_side=500), replace(ENCODING, max_side=100), WEBP):
                with pytest.raises(UnusableImageError, match="undecodable image"):
                    encode(damaged, encoding)
    assert refused


def transparent(mode: str) -> Image.Image:
    """The left half is transparent."""
    image = PICTURE.convert("RGBA")
    image.putalpha(Image.fromarray(np.where(np.arange(24) < 12, 0, 255).astype(np.uint8)[None].repeat(16, 0)))
    return image if mode == "RGBA" else image.convert(mode)


def keyed(mode: str) -> bytes:
    """PNG whose chunk tRNS says that one colour, that of the left half, is transparent."""
    values = np.where(np.arange(24) < 12, 7, 200).astype(np.uint8)[None].repeat(16, 0)
    if mode == "I;16":
        return saved(Image.fromarray(values.astype(np.uint16) * 257), "PNG", transparency=7 * 257)
    image = Image.fromarray(values).convert(mode)
    return saved(image, "PNG", transparency=(7, 7, 7) if mode == "RGB" else image.getpixel((0, 0)))


TRANSPARENT = {
    **{kind: (saved(transparent("RGBA"), kind), COLOURS) for kind in ("PNG", "TIFF", "JPEG2000", "TGA")},
    "WEBP": (saved(transparent("RGBA"), "WEBP", lossless=True), COLOURS),
    "grey PNG": (saved(transparent("LA"), "PNG"), np.asarray(PICTURE.convert("L"))),
    **{f"tRNS {mode}": (keyed(mode), np.full((16, 24), 200)) for mode in ("L", "P", "RGB", "I;16")},
}


@pytest.mark.parametrize("name", TRANSPARENT)
def test_what_is_transparent_is_white(name: str) -> None:
    data, right = TRANSPARENT[name]
    seen = shown(data)
    assert seen[:, :11].mean() > 252 and near(seen[:, 12:], right[:, 12:])


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_colours_that_are_multiplied_by_their_opacity(mode: str) -> None:
    image = transparent(mode).convert("RGBa" if mode == "RGBA" else "La")
    seen = np.asarray(pixels(image).convert("RGB")).astype(int)
    assert seen[:, :12].min() == 255 and seen[:, 12:].std() > 20


@pytest.mark.parametrize(
    ("kind", "mode", "levels"),
    [
        *[("TIFF", mode, levels) for mode, levels in (("CMYK", 1), ("YCbCr", 4), ("LAB", 6), ("RGBX", 1), ("RGB", 0))],
        *[("JPEG", mode, 4) for mode in ("CMYK", "YCbCr", "RGB")],  # Pillow inverts inks, as Adobe does
        *[("WEBP", mode, 5) for mode in ("HSV", "CMYK", "RGB")],
        *[(kind, "RGB", 1) for kind in ("BMP", "TGA", "JPEG2000", "PPM", "PCX")],
    ],
)
def test_colours_of_every_mode_are_kept(kind: str, mode: str, levels: float) -> None:
    options = {"quality": 95} if kind in ("JPEG", "WEBP") else {}
    assert near(shown(saved(PICTURE.convert(mode), kind, **options)), COLOURS, levels)


@pytest.mark.parametrize(("kind", "mode"), [("PNG", "1"), ("TIFF", "1"), ("BMP", "1"), ("GIF", "P"), ("TIFF", "PA")])
def test_few_colours_are_those_that_pillow_shows(kind: str, mode: str) -> None:
    image = PICTURE.convert("P").convert(mode) if mode == "PA" else PICTURE.convert(mode)
    assert near(shown(saved(image, kind)), np.asarray(image.convert("RGB")), 0)


# Animations and damage: what Pillow opens and the loader does not.


@pytest.mark.parametrize("kind", ["WEBP", "GIF", "PNG"])
def test_the_first_picture_of_an_animation_is_kept(kind: str) -> None:
    options = {"lossless": True} if kind == "WEBP" else {}
    data = saved(PICTURE, kind, save_all=True, append_images=[PICTURE.rotate(180)], duration=100, **options)
    assert Image.open(io.BytesIO(data)).n_frames == 2  # type: ignore[attr-defined]
    assert near(shown(data), COLOURS, 4)


def flipped(data: bytes, at: int) -> bytes:
    return data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]


def test_a_wrong_checksum_costs_no_image_and_damaged_pixels_do() -> None:
    data = saved(PICTURE, "PNG")
    begin = data.index(b"IDAT")
    end = begin + 4 + int.from_bytes(data[begin - 4 : begin])
    with pytest.raises(DecodeError):
        decode(flipped(data, end))
    assert near(shown(flipped(data, end)), COLOURS, 0)
    for at in (begin + 20, (begin + end) // 2, end - 1):
        with pytest.raises(UnusableImageError, match="undecodable image"):
            encode(flipped(data, at), ENCODING)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("wanted", ["keep", "png"])
def test_whatever_is_stored_is_what_the_loader_reads(kind: str, wanted: Any) -> None:
    """Of damaged files some are dropped, and none is passed on that would end training."""
    encoding = Encoding(max_side=64, format=wanted, quality=95, max_pixels=10**6)
    data, rng, stored = saved(PICTURE, kind), np.random.default_rng(0), 0
    for _ in range(150):
        damaged = bytearray(data)
        start = rng.integers(len(data))
        damaged[start : start + 4] = rng.bytes(len(damaged[start : start + 4]))
        with warnings.catch_warnings(action="ignore"):
            try:
                decode(encode(bytes(damaged[: len(data) - rng.integers(3)]), encoding))
            except UnusableImageError:
                continue
        stored += 1
    assert 0 < stored < 150


# Metadata that is broken, and costs no image.


def chunk(name: bytes, data: bytes, *, wrong: bool = False) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data) ^ wrong)


def in_png(*chunks: bytes, late: bool = False) -> bytes:
    data = saved(PICTURE, "PNG")
    at = len(data) - 12 if late else 33
    return data[:at] + b"".join(chunks) + data[at:]


def in_jpeg(marker: int, data: bytes) -> bytes:
    picture = saved(PICTURE, "JPEG", quality=95)
    return picture[:2] + bytes([0xFF, marker]) + struct.pack(">H", len(data) + 2) + data + picture[2:]


def in_webp(name: bytes, data: bytes) -> bytes:
    """Lossy WebP in the extended form: its flags say what it holds."""

    def part(name: bytes, data: bytes) -> bytes:
        return name + struct.pack("<I", len(data)) + data + b"\0" * (len(data) & 1)

    flags = {b"ICCP": 0x20, b"EXIF": 0x08, b"XMP ": 0x04}[name]
    picture, extra = saved(PICTURE, "WEBP", quality=95)[12:], part(name, data)
    body = part(b"VP8X", bytes([flags, 0, 0, 0, 23, 0, 0, 15, 0, 0]))
    body += extra + picture if name == b"ICCP" else picture + extra
    return b"RIFF" + struct.pack("<I", len(body) + 4) + b"WEBP" + body


def exif(*entries: bytes, count: int | None = None) -> bytes:
    """A TIFF header and a directory of some entries, each of 12 bytes."""
    return b"II*\0" + struct.pack("<IH", 8, len(entries) if count is None else count) + b"".join(entries) + b"\0" * 4


def entry(tag: int, kind: int, count: int, value: int) -> bytes:
    return struct.pack("<HHII", tag, kind, count, value)


TURNED = entry(0x112, 3, 1, 6)
EXIF: dict[str, tuple[bytes, bool]] = {
    "garbage": (b"\x01no directory of tags at all" * 3, False),
    "cut off": (exif(TURNED)[:14], False),
    "nothing": (b"", False),
    "a text for the orientation": (exif(entry(0x112, 2, 2, ord("6"))), False),
    "an orientation that does not exist": (exif(entry(0x112, 3, 1, 99)), False),
    "valid": (exif(TURNED), True),
    "a number for the camera's maker": (exif(entry(0x10F, 3, 1, 9), TURNED), True),
    "a text for the resolution": (exif(TURNED, entry(0x11A, 2, 900, 4000)), True),
    "an unknown type": (exif(entry(0x10F, 99, 1, 0), TURNED), True),
    "more tags than there are": (exif(TURNED, count=60_000), True),
    "a text for a directory": (exif(TURNED, entry(0x8769, 2, 4, 0x636261)), True),
}
CARRIERS: dict[str, Callable[[bytes], bytes]] = {
    "png": lambda data: in_png(chunk(b"eXIf", data)),
    "png, late": lambda data: in_png(chunk(b"eXIf", data), late=True),
    "jpeg": lambda data: in_jpeg(0xE1, b"Exif\0\0" + data),
    "webp": lambda data: in_webp(b"EXIF", data),
}


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("name", EXIF)
@pytest.mark.parametrize("carrier", CARRIERS)
@pytest.mark.parametrize("wanted", ["keep", "png"])
def test_broken_exif_costs_no_image_and_a_valid_orientation_counts(carrier: str, name: str, wanted: Any) -> None:
    content, turned = EXIF[name]
    data = CARRIERS[carrier](content)
    seen = shown(data, Encoding(max_side=64, format=wanted, quality=95, max_pixels=10**6))
    assert near(seen, np.rot90(COLOURS, -1) if turned else COLOURS, 4)
    assert kept(data)
    perceptual(data)


LONG = b"x" * (3 << 20)
METADATA = {
    "text that unpacks to much": in_png(chunk(b"zTXt", b"Comment\0\0" + zlib.compress(LONG))),
    "the same behind the pixels": in_png(chunk(b"zTXt", b"Comment\0\0" + zlib.compress(LONG)), late=True),
    "international text": in_png(chunk(b"iTXt", b"Comment\0\1\0\0\0" + zlib.compress(LONG))),
    "long text": in_png(chunk(b"tEXt", b"Comment\0" + LONG)),
    "much text": in_png(*[chunk(b"zTXt", b"C\0\0" + zlib.compress(LONG[: 1 << 20]))] * 66),
    "text that does not unpack": in_png(chunk(b"zTXt", b"Comment\0\0garbage")),
    "text of an unknown method": in_png(chunk(b"zTXt", b"Comment\0\7garbage")),
    "text with a wrong checksum": in_png(chunk(b"tEXt", b"Comment\0text", wrong=True)),
    "profile that does not unpack": in_png(chunk(b"iCCP", b"icc\0\0garbage")),
    "profile of an unknown method": in_png(chunk(b"iCCP", b"icc\0\7" + zlib.compress(b"profile"))),
    "profile without a name": in_png(chunk(b"iCCP", b"")),
    "profile that unpacks to much": in_png(chunk(b"iCCP", b"icc\0\0" + zlib.compress(LONG))),
    "gamma without a number": in_png(chunk(b"gAMA", b"")),
    "short density": in_png(chunk(b"pHYs", b"abc")),
    "jpeg: profile that is none": in_jpeg(0xE2, b"ICC_PROFILE\0\1\1garbage"),
    "jpeg: short profile": in_jpeg(0xE2, b"ICC_PROFILE\0"),
    "jpeg: profile in parts that do not exist": in_jpeg(0xE2, b"ICC_PROFILE\0\5\2garbage"),
    "jpeg: list of further images": in_jpeg(0xE2, b"MPF\0garbage"),
    "jpeg: short mark of Adobe": in_jpeg(0xEE, b"Adobe"),
    "jpeg: short mark of JFIF": in_jpeg(0xE0, b"JFIF\0"),
    "jpeg: broken resources of Photoshop": in_jpeg(0xED, b"Photoshop 3.0\x008BIM\x03\xed\0\0\0\0\0\x10ab"),
    "webp: profile that is none": in_webp(b"ICCP", b"garbage"),
    "webp: text that is none": in_webp(b"XMP ", b"\xff\xfe<<"),
}


def kept(data: bytes) -> bool:
    codes, short = rules.judge(
        pa.array([data], pa.binary()), np.array([0]), rules.ImageRules(min_side=1, max_aspect=9, max_pixels=10**6)
    )
    return bool(codes[0] == rules.KEPT and short[0] == 16)


@pytest.mark.parametrize("name", METADATA)
@pytest.mark.parametrize("wanted", ["keep", "png"])
def test_broken_metadata_costs_no_image(name: str, wanted: Any) -> None:
    data = METADATA[name]
    assert near(shown(data, Encoding(max_side=64, format=wanted, quality=95, max_pixels=10**6)), COLOURS, 4)
    assert kept(data)
    perceptual(data)


def test_what_is_stored_anew_has_no_metadata() -> None:
    for data in (in_png(chunk(b"gAMA", b"")), in_png(chunk(b"iCCP", b"icc\0\7")), in_jpeg(0xEE, b"Adobe")):
        stored = encode(data, ENCODING)
        assert len(stored) <= len(data) and not Image.open(io.BytesIO(stored)).info.keys() & {"icc_profile", "exif"}


def test_a_jpeg_that_only_loses_its_metadata_keeps_its_pixels_bit_by_bit() -> None:
    broken = in_jpeg(0xEE, b"Adobe")
    assert (shown(broken) == shown(saved(PICTURE, "JPEG", quality=95))).all()
