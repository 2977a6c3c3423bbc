"""Width and height of encoded pictures from their first bytes, as a compiled loop over an Arrow array.

Only a picture that Pillow is certain to open gets a size: one whose header holds nothing that Pillow looks into and
may refuse. All others (a JPEG with Exif, animations, whatever is broken) are for Pillow itself to open.
"""

import zlib

import numpy as np
import pyarrow as pa
from numba import types
from PIL import Image

from pipelines.stages.compiled import In, Out, jit, string_buffers

PIXELS = Image.MAX_IMAGE_PIXELS or 0
"""Pillow warns of larger pictures."""
CRC = np.array([zlib.crc32(bytes([i]), 0xFFFFFFFF) ^ 0xFFFFFFFF for i in range(256)], np.uint32)
PNG = np.frombuffer(b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR", np.uint8)
DEPTHS = np.zeros((7, 17), np.bool_)
"""Colour types and bit depths of PNG that exist."""
for colour, depths in {0: (1, 2, 4, 8, 16), 2: (8, 16), 3: (1, 2, 4, 8), 4: (8, 16), 6: (8, 16)}.items():
    DEPTHS[colour, list(depths)] = True
PLAIN = np.array(
    [
        (int.from_bytes(name), least)
        for name, least in {
            b"PLTE": 0,
            b"gAMA": 4,
            b"cHRM": 32,
            b"sRGB": 1,
            b"pHYs": 9,
            b"sBIT": 0,
            b"tEXt": 0,
            b"eXIf": 0,
        }.items()
    ]
)
"""Chunks of PNG that can't be wrong, and the bytes that they need."""
HEADER_BYTES = 1 << 20
"""Pillow refuses much text in a PNG."""
NO_SIZE = (0, 0)


def sizes(images: pa.BinaryArray, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Widths and heights of `images[rows]`, pixels, int64 [N]; 0 and 0 where Pillow has to be asked."""
    data, offsets = string_buffers(images)
    given = images.is_valid().to_numpy(zero_copy_only=False).view(np.uint8)
    widths, heights = np.zeros(len(rows), np.int64), np.zeros(len(rows), np.int64)
    _sizes(data, offsets, given, np.ascontiguousarray(rows, np.int32), widths, heights)
    return widths, heights


_At = (In.uint8, types.int64)
_Size = types.UniTuple(types.int64, 2)
_Part = (In.uint8, types.int64, types.int64)


@jit(types.int64(*_At))
def _u16(data, at):
    return np.int64(data[at]) << 8 | np.int64(data[at + 1])


@jit(types.int64(*_At))
def _u32(data, at):
    return _u16(data, at) << 16 | _u16(data, at + 2)


@jit(types.int64(*_At))
def _u16_little(data, at):
    return np.int64(data[at]) | np.int64(data[at + 1]) << 8


@jit(types.int64(*_At))
def _u32_little(data, at):
    return (
        np.int64(data[at]) | np.int64(data[at + 1]) << 8 | np.int64(data[at + 2]) << 16 | np.int64(data[at + 3]) << 24
    )


@jit(types.boolean(*_Part))
def _crc_holds(data, begin, end):
    crc = np.uint32(0xFFFFFFFF)
    for i in range(begin, end):
        crc = np.uint32(crc >> np.uint32(8)) ^ CRC[np.uint8(crc & np.uint32(0xFF)) ^ data[i]]
    return np.int64(crc ^ np.uint32(0xFFFFFFFF)) == _u32(data, end)


@jit(_Size(*_Part))
def _png(data, begin, end):
    """IHDR, then chunks that can't be wrong, up to the first of the pixels."""
    if end - begin < 33:
        return NO_SIZE
    for i in range(len(PNG)):
        if data[begin + i] != PNG[i]:
            return NO_SIZE
    depth, colour, filters = data[begin + 24], data[begin + 25], data[begin + 27]
    if colour > 6 or depth > 16 or not DEPTHS[colour, depth] or filters or not _crc_holds(data, begin + 12, begin + 29):
        return NO_SIZE
    at = begin + 33
    while at + 8 <= end and at - begin < HEADER_BYTES:
        length, name = _u32(data, at), _u32(data, at + 4)
        if name == 0x49444154:  # IDAT
            return _u32(data, begin + 16), _u32(data, begin + 20)
        plain = name == 0x74524E53 and colour == 3  # tRNS of a palette
        for known, least in PLAIN:
            plain |= name == known and length >= least
        if not plain or length > end - at - 12 or not _crc_holds(data, at + 4, at + 8 + length):
            return NO_SIZE
        at += 12 + length
    return NO_SIZE


@jit(_Size(*_Part))
def _jpeg(data, begin, end):
    """Segments one after another up to the scan, the frame's among them."""
    width, height = 0, 0
    at = begin + 2
    while at + 4 <= end and data[at] == 0xFF:
        marker, content, stop = data[at + 1], at + 4, at + 2 + _u16(data, at + 2)
        if stop < content or stop > end:
            return NO_SIZE
        if marker == 0xDA:
            return width, height
        first = data[content] if stop > content else np.uint8(0)
        if marker in (0xC0, 0xC1, 0xC2):
            layers = data[content + 5] if stop - content > 5 else np.uint8(0)
            if first != 8 or layers not in (1, 3, 4) or stop - content != 6 + 3 * layers:
                return NO_SIZE
            height, width = _u16(data, content + 1), _u16(data, content + 3)
        elif marker == 0xDB:
            while content < stop:
                content += 65 if data[content] < 16 else 129
            if content > stop:
                return NO_SIZE
        elif 0xE0 <= marker <= 0xEF:
            looked_into = first in (ord("E"), ord("M"), ord("P"))  # Exif, MPF, Photoshop
            shortest = 14 if marker in (0xE0, 0xE2) else 7  # JFIF and ICC profiles, Adobe
            if (looked_into and marker in (0xE1, 0xE2, 0xED)) or stop - content < shortest:
                return NO_SIZE
        elif marker not in (0xC4, 0xDD, 0xFE):
            return NO_SIZE
        at = stop
    return NO_SIZE


@jit(_Size(*_Part))
def _webp(data, begin, end):
    """One still picture, nothing else in the file."""
    if end - begin < 30:
        return NO_SIZE
    length, name = _u32_little(data, begin + 16), _u32(data, begin + 12)
    whole = _u32_little(data, begin + 4) == end - begin - 8 and length + (length & 1) == end - begin - 20
    if _u32(data, begin + 8) != 0x57454250 or not whole:
        return NO_SIZE
    at = begin + 20
    if name == 0x56503820:  # VP8: a key frame that is shown, of a known profile
        tag = _u32_little(data, at) & 0xFFFFFF
        shown = tag & 0b10001 == 0b10000 and (tag >> 1) & 7 <= 3 and tag >> 5 < length
        if shown and _u32(data, at + 2) & 0xFFFFFF == 0x9D012A:
            return _u16_little(data, at + 6) & 0x3FFF, _u16_little(data, at + 8) & 0x3FFF
    if name == 0x5650384C and data[at] == 0x2F:  # VP8L of version 0
        bits = _u32_little(data, at + 1)
        if bits >> 29 == 0:
            return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    return NO_SIZE


@jit(types.void(In.uint8, In.int32, In.uint8, In.int32, Out.int64, Out.int64))
def _sizes(data, offsets, given, rows, widths, heights):
    for i in range(len(rows)):
        begin, end = np.int64(offsets[rows[i]]), np.int64(offsets[rows[i] + 1])
        if not given[rows[i]] or end - begin < 12:
            continue
        width, height = NO_SIZE
        if data[begin] == 0x89:
            width, height = _png(data, begin, end)
        elif data[begin] == 0xFF and data[begin + 1] == 0xD8:
            width, height = _jpeg(data, begin, end)
        elif _u32(data, begin) == 0x52494646:  # RIFF
            width, height = _webp(data, begin, end)
        if 0 < width * height <= PIXELS:
            widths[i], heights[i] = width, height
