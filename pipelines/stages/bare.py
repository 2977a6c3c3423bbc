"""JPEG and PNG files without their metadata, which decoders of pixels do not need and may fail on."""

from collections.abc import Iterator
from zlib import crc32

PNG = b"\x89PNG\r\n\x1a\n"
PNG_CHUNKS = (b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND", b"eXIf")
"""Chunks that pixels and their orientation are made of."""
JPEG_SEGMENTS = {0xE0: (b"JFIF\0", 16), 0xE1: (b"Exif\0\0", 8), 0xEE: (b"Adobe", 14)}
"""Application segments that hold colours and orientation, by marker: their first bytes, and their shortest length."""
SCAN, COMMENT, FILL = 0xDA, 0xFE, 0xFF


def without_metadata(data: bytes) -> bytes | None:
    """The same pixels, bit by bit, and their orientation; None for other formats and where nothing can be left out."""
    if data.startswith(PNG):
        parts = [PNG, *_png(data)]
    elif data.startswith(b"\xff\xd8\xff"):
        parts = [data[:2], *_jpeg(data)]
    else:
        return None
    bare = b"".join(parts)
    return bare if bare != data else None


def _png(data: bytes) -> Iterator[bytes]:
    at = len(PNG)
    while at + 12 <= len(data):
        name, end = data[at + 4 : at + 8], at + 12 + int.from_bytes(data[at : at + 4])
        if name == b"eXIf":  # a wrong checksum of metadata is no damage
            yield data[at : end - 4] + crc32(data[at + 4 : end - 4]).to_bytes(4)
        elif name in PNG_CHUNKS:
            yield data[at:end]
        at = end


def _jpeg(data: bytes) -> Iterator[bytes]:
    at = 2
    while at + 4 <= len(data) and data[at] == 0xFF:
        marker, length = data[at + 1], int.from_bytes(data[at + 2 : at + 4])
        if marker == FILL:
            at += 1
            continue
        if marker == SCAN:
            break
        begin, least = JPEG_SEGMENTS.get(marker, (b"", 0))
        known = bool(begin) and data.startswith(begin, at + 4) and length >= least
        if known or not (0xE0 <= marker <= 0xEF or marker == COMMENT):
            yield data[at : at + 2 + length]
        at += 2 + length
    yield data[at:]
