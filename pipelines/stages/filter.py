"""Rules that drop captions and rows before balancing, and the names of the reasons."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

KEPT = 0
ROW_REASONS = (
    "kept",
    "no captions",
    "kinds are not parallel to captions",
    "excluded by a column",
    "no caption kept",
    "unreadable image",
    "shorter side below the minimum",
    "aspect ratio above the maximum",
)
CAPTION_REASONS = (
    "kept",
    "empty",
    "too few words",
    "too few characters",
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


def caption_reasons(texts: pa.StringArray, min_words: int, min_characters: int) -> np.ndarray:
    """Code of `CAPTION_REASONS` of each text, uint8; surrounding white space does not count."""
    trimmed = pc.utf8_trim_whitespace(pc.fill_null(texts, ""))
    characters = pc.utf8_length(trimmed).to_numpy()
    words = pc.count_substring_regex(trimmed, r"\s+").to_numpy() + 1
    reasons = np.where(characters < min_characters, CAPTION["too few characters"], KEPT).astype(np.uint8)
    reasons[words < min_words] = CAPTION["too few words"]
    reasons[characters == 0] = CAPTION["empty"]
    return reasons


def image_reason(width: int, height: int, min_side: int, max_aspect: float) -> int:
    """Code of `ROW_REASONS` of an image of that size, pixels."""
    if min(width, height) < min_side:
        return ROW["shorter side below the minimum"]
    if max(width, height) > max_aspect * min(width, height):
        return ROW["aspect ratio above the maximum"]
    return KEPT
