"""Texts and entries as code points, for entries that need no space on one side or both (`v2`)."""

import string

import numpy as np
from numba import types

from pipelines.stages.compiled import In, Out, jit
from pipelines.stages.match.tokens import CLASSES, ORDINARY, PUNCTUATION

ALPHABET = 0x110000
"""Code points of Unicode."""
UNSPACED = (
    (0x0E00, 0x0E7F),  # Thai
    (0x0E80, 0x0EFF),  # Lao
    (0x0F00, 0x0FFF),  # Tibetan
    (0x1000, 0x109F),  # Burmese
    (0xA9E0, 0xA9FF),
    (0xAA60, 0xAA7F),
    (0x1780, 0x17FF),  # Khmer
    (0x19E0, 0x19FF),
    (0x2E80, 0x2FDF),  # Han: radicals
    (0x3400, 0x4DBF),  # Han: ideographs
    (0x4E00, 0x9FFF),
    (0xF900, 0xFAFF),
    (0x20000, 0x323AF),
    (0x3000, 0x303F),  # CJK punctuation
    (0xFE30, 0xFE4F),
    (0xFF01, 0xFF0F),
    (0xFF1A, 0xFF20),
    (0xFF3B, 0xFF40),
    (0xFF5B, 0xFF65),
)
"""Blocks (first, last) of the scripts written without spaces, and of CJK punctuation, half and full width."""


def is_open(character: str) -> bool:
    """Whether an entry that begins or ends with it matches without a space there."""
    point = ord(character)
    return character in string.punctuation or any(first <= point <= last for first, last in UNSPACED)


def padded(entry: str) -> str:
    """The entry with a space on each side that needs one."""
    left = "" if entry and is_open(entry[0]) else " "
    right = "" if entry and is_open(entry[-1]) else " "
    return left + entry + right


@jit(types.int64(In.uint8, types.int64, types.int64, Out.int32))
def spaced_points(data, begin, end, points):
    """Code points of `spaced(data[begin:end])`, UTF-8. Returns how many there are. points: room for 3 * (end -
    begin) + 2."""
    points[0] = 32
    count, i = 1, begin
    while i < end:
        byte = np.int32(data[i])
        kind = CLASSES[byte]
        length = 1 if byte < 0x80 else 2 if byte < 0xE0 else 3 if byte < 0xF0 else 4
        if kind == PUNCTUATION:
            points[count], points[count + 1], points[count + 2] = 32, byte, 32
            count += 3
        else:
            point = np.int32(32) if kind != ORDINARY else byte if length == 1 else byte & (0x7F >> length)
            for j in range(i + 1, min(i + length, end)):
                point = point << 6 | np.int32(data[j] & 0x3F)
            points[count] = point
            count += 1
        i += length
    points[count] = 32
    return count + 1
