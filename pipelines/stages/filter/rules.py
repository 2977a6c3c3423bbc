"""Rules that drop captions and rows before balancing, and the names of the reasons."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numba import types

from pipelines.stages import pixels
from pipelines.stages.compiled import In, Out, jit, string_buffers
from pipelines.stages.filter import language
from pipelines.stages.pixels import UnusableImageError

KEPT = 0
ROW_REASONS = (
    "kept",
    "line cannot be read",
    "text is no Unicode",
    "file is too large",
    "field of another type",
    "no captions",
    "caption types are not parallel to captions",
    "excluded by a column",
    "thinned out by its pool's weight",
    "evaluation",
    "duplicate",
    "near_duplicate",
    "no caption kept",
    "unreadable image",
    "too many pixels",
    "shorter side below the minimum",
    "aspect ratio above the maximum",
)
CAPTION_REASONS = (
    "kept",
    "empty",
    "too few words",
    "too few characters",
    "another language",
    "no entries for its language",
    "matches no entry",
    "thinned out by balancing",
    "its image was dropped",
)
ROW = {name: code for code, name in enumerate(ROW_REASONS)}
CAPTION = {name: code for code, name in enumerate(CAPTION_REASONS)}

OPERATORS: dict[str, Callable[[Any, Any], Any]] = {
    "<=": pc.less_equal,
    ">=": pc.greater_equal,
    "==": pc.equal,
    "!=": pc.not_equal,
    "<": pc.less,
    ">": pc.greater,
}


@dataclass(frozen=True, kw_only=True)
class Condition:
    """A column of the pool compared with a constant; a null fails."""

    column: str
    operator: str
    value: Any

    def holds(self, values: pa.Array) -> np.ndarray:
        passed = OPERATORS[self.operator](values, pa.scalar(self.value))
        return pc.fill_null(passed, False).to_numpy(zero_copy_only=False)


def parse_condition(text: str, columns: pa.Schema) -> Condition:
    """`nsfw < 0.5`, `language == "en"`. Raises ValueError naming what is wrong with it."""
    for symbol in OPERATORS:
        name, found, literal = text.partition(symbol)
        if not found:
            continue
        name = name.strip()
        if name not in columns.names:
            raise ValueError(
                f"--where {text!r}: the pool has no column {name!r}; it carries {', '.join(columns.names) or 'none'}"
            )
        try:
            condition = Condition(column=name, operator=symbol, value=json.loads(literal))
            condition.holds(pa.nulls(1, columns.field(name).type))
        except (json.JSONDecodeError, pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
            raise ValueError(
                f"--where {text!r}: {literal.strip()!r} is nothing to compare with {columns.field(name).type};"
                " it has to be a number or a string in double quotes"
            ) from error
        return condition
    raise ValueError(f"--where {text!r} has none of {' '.join(OPERATORS)}; write for instance 'nsfw < 0.5'")


def language_reasons(texts: pa.StringArray, reasons: np.ndarray, languages: Sequence[str]) -> np.ndarray:
    """The codes of texts, with that of another language in place of KEPT where a text is in none of `languages`."""
    kept = np.flatnonzero(reasons == KEPT)
    other = [found not in languages for found in language.detect(texts.take(pa.array(kept)).to_pylist())]
    result = reasons.copy()
    result[kept[other]] = CAPTION["another language"]
    return result


def caption_reasons(texts: pa.StringArray, min_words: int, min_characters: int) -> np.ndarray:
    """Code of `CAPTION_REASONS` of each text, uint8; surrounding white space does not count."""
    asked = (min_characters > 1, min_words > 1)
    characters, words, rough = _sizes(*string_buffers(texts), *asked)
    if texts.null_count:
        rough |= texts.is_null().to_numpy(zero_copy_only=False)
    if rough.any():
        trimmed = pc.utf8_trim_whitespace(pc.fill_null(texts.filter(pa.array(rough)), ""))
        characters[rough], words[rough], _ = _sizes(*string_buffers(trimmed), *asked)
    reasons = np.where(characters < min_characters, CAPTION["too few characters"], KEPT).astype(np.uint8)
    if min_words > 1:
        reasons[words < min_words] = CAPTION["too few words"]
    reasons[characters == 0] = CAPTION["empty"]
    return reasons


@jit(types.Tuple((Out.int32, Out.int32, Out.boolean))(In.uint8, In.int32, types.boolean, types.boolean))
def _sizes(data, offsets, count_characters, count_words):
    """Characters of each text, 1 for any number where not asked; its runs of bytes that are no white space, where
    asked; and whether it may have white space around it: most texts begin and end in a visible character of ASCII."""
    count = len(offsets) - 1
    characters, words, rough = np.zeros(count, np.int32), np.zeros(count, np.int32), np.ones(count, np.bool_)
    for t in range(count):
        begin, end = offsets[t], offsets[t + 1]
        if begin == end:
            continue
        rough[t] = not (33 <= data[begin] <= 126 and 33 <= data[end - 1] <= 126)
        characters[t] = 1
        if count_characters:
            number = np.int32(0)
            for byte in data[begin:end]:
                number += (byte & 0xC0) != 0x80  # bytes that go on with a character of UTF-8
            characters[t] = number
        if count_words:
            number, before = np.int32(0), True
            for byte in data[begin:end]:
                space = byte == 32 or 9 <= byte <= 10 or 12 <= byte <= 13
                number += before and not space
                before = space
            words[t] = number
    return characters, words, rough


@dataclass(frozen=True, kw_only=True)
class ImageRules:
    """Rules for an image, judged by its header."""

    min_side: int
    """Pixels of the shorter side."""
    max_aspect: float
    """Longer side by shorter side."""
    max_pixels: int
    """More are not decoded: a small file can unpack to more than the memory of the machine."""


def judge(images: pa.BinaryArray, rows: np.ndarray, image_rules: ImageRules) -> tuple[np.ndarray, np.ndarray]:
    """Codes of `ROW_REASONS` (uint8 [N]) of the encoded images `images[rows]`, and their shorter sides, pixels
    (int64 [N]; of those that are kept). Decodes no pixel."""
    found = np.array([opened(images[row].as_py()) for row in rows.tolist()], np.int64).reshape(-1, 3)
    codes, sides = found[:, 0].astype(np.uint8), np.sort(found[:, 1:], axis=1)
    short, long = sides[:, 0], sides[:, 1]
    broken = {
        "too many pixels": short * long > image_rules.max_pixels,
        "shorter side below the minimum": short < image_rules.min_side,
        "aspect ratio above the maximum": long > image_rules.max_aspect * short,
    }
    for reason, flags in broken.items():
        codes[flags & (codes == KEPT)] = ROW[reason]
    return codes, short


def opened(image: bytes | None) -> tuple[int, int, int]:
    """Code of an image that Pillow opens, or refuses to, and its width and height."""
    try:
        return KEPT, *pixels.size(image or b"")
    except UnusableImageError as error:
        return ROW["too many pixels" if str(error) == pixels.TOO_LARGE else "unreadable image"], 1, 1
