"""Files of text as lines: the one reader for pools, lists of captions, class names, templates and metadata.

A file is UTF-8, with a byte order mark or without. A line ends at a newline, which a carriage return may precede, and
nowhere else: U+2028, NEL, form feeds and lone carriage returns are letters of a caption.
"""

import os

from llip import storage

ENCODINGS = {b"\xff\xfe\x00\x00": "UTF-32", b"\x00\x00\xfe\xff": "UTF-32", b"\xff\xfe": "UTF-16", b"\xfe\xff": "UTF-16"}
"""Other encodings, by their byte order marks."""
HEAD = 1 << 10
"""Bytes that are looked at for an encoding without a mark."""
ZEROS = 8
"""In texts of UTF-16 about every second byte is zero; one of more than so many shows them."""


def refuse_other_encodings(head: bytes, where: str | os.PathLike[str]) -> None:
    """Raise ValueError where the beginning of a file is of an encoding with wider letters."""
    name = next((name for mark, name in ENCODINGS.items() if head.startswith(mark)), None)
    if name or head[:HEAD].count(0) * ZEROS > len(head[:HEAD]):
        raise ValueError(f"{where} is {name or 'UTF-16 or no text'}; it has to be UTF-8")


def decoded(content: bytes, where: str | os.PathLike[str]) -> str:
    """The text of a file. Raises ValueError naming the line that is no UTF-8."""
    refuse_other_encodings(content[:HEAD], where)
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise ValueError(
            f"{where}, line {line} is no UTF-8 (byte {content[error.start]:#04x}); save it as UTF-8"
        ) from error


def lines(content: bytes, where: str | os.PathLike[str]) -> list[str]:
    """The lines of a file that are not blank. Raises ValueError as `decoded` does."""
    return [line for line in all_lines(decoded(content, where)) if line.strip()]


def all_lines(text: str) -> list[str]:
    """The lines of a text, blank ones too; what follows the last newline is one where it is not empty."""
    return [line.removesuffix("\r") for line in text.removesuffix("\n").split("\n")] if text else []


def read_lines(uri: str | os.PathLike[str]) -> list[str]:
    """`lines` of a file."""
    return lines(storage.read_bytes(uri), uri)


def numbered_lines(uri: str | os.PathLike[str]) -> list[tuple[int, str]]:
    """All lines of a file with their numbers, from 1. Raises ValueError as `decoded` does."""
    return [*enumerate(all_lines(decoded(storage.read_bytes(uri), uri)), 1)]


def is_unicode(text: str) -> bool:
    """Whether a text can be written: JSON may hold halves of characters (lone surrogates)."""
    return text.isascii() or not any("\ud800" <= letter <= "\udfff" for letter in text)
