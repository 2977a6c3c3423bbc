"""Types of what rows bring beside image and captions: fields of JSON objects, columns of lists, folders' names."""

import json
import re
from collections.abc import Sequence
from typing import Any

import pyarrow as pa

from llip.data import text_files

WHOLE = re.compile(r"-?(0|[1-9]\d{0,17})")
NUMBER = re.compile(r"-?\d+(\.\d*)?([eE][-+]?\d+)?|-?\.\d+")
HIVE = re.compile(r"([^=/]+)=([^=/]*)")


def ending(name: str) -> str:
    """The end of a file's name, as it is counted by."""
    last = name.rpartition("/")[2]
    return "." + last.rpartition(".")[2].lower() if "." in last.lstrip(".") else "without a suffix"


def of_all(values: Sequence[Any]) -> pa.DataType | None:
    """The type of a column whose values are all known; texts that are all numbers are numbers. None: nothing but
    nulls."""
    present = [value for value in values if value is not None and value != ""]
    if not present:
        return pa.string() if "" in values else None
    if all(isinstance(value, str) for value in present):
        if all(WHOLE.fullmatch(value) for value in present):
            return pa.int64()
        return pa.float64() if all(NUMBER.fullmatch(value) for value in present) and _plain(present) else pa.string()
    return _of_json(present)


def of_sample(values: Sequence[Any]) -> pa.DataType | None:
    """The type of a column of which some values are known: every number is one with a fraction."""
    present = [value for value in values if value is not None]
    kind = _of_json(present) if present else None
    return pa.float64() if kind == pa.int64() else kind


def wider(one: pa.DataType | None, other: pa.DataType | None) -> pa.DataType | None:
    """The type of a column whose parts are of these, as `of_all` found them."""
    if one is None or other is None or one == other:
        return one if other is None else other
    return pa.float64() if {one, other} == {pa.int64(), pa.float64()} else pa.string()


def _plain(texts: Sequence[str]) -> bool:
    """Whether no number begins with zeros, which would be lost: those of a name or a code do."""
    return not any(re.match(r"-?0\d", text) for text in texts)


def _of_json(present: Sequence[Any]) -> pa.DataType:
    kinds = {type(value) for value in present}
    if kinds == {bool}:
        return pa.bool_()
    if kinds <= {int, float}:
        return pa.int64() if kinds == {int} and all(abs(v) < 1 << 62 for v in present) else pa.float64()
    if kinds == {list}:
        try:
            kind = pa.array(present).type
        except (pa.ArrowException, ValueError, OverflowError):
            return pa.string()
        return kind if _can_be_written(kind) else pa.string()
    return pa.string()


def _can_be_written(kind: pa.DataType) -> bool:
    """Whether Parquet has the type: none of nothing, nor of objects without fields."""
    if pa.types.is_list(kind):
        return _can_be_written(kind.value_type)
    if pa.types.is_struct(kind):
        return bool(kind.num_fields) and all(_can_be_written(field.type) for field in kind)
    return not pa.types.is_null(kind)


def array(values: Sequence[Any], kind: pa.DataType) -> tuple[pa.Array, list[int]]:
    """A column of this type, and the rows whose values have another one: null there."""
    given = [_as(value, kind) for value in values]
    try:
        return pa.array(given, kind), []
    except (pa.ArrowException, ValueError, OverflowError, TypeError):
        others = [row for row, value in enumerate(given) if not _fits(value, kind)]
        return pa.array([None if row in {*others} else value for row, value in enumerate(given)], kind), others


def _as(value: Any, kind: pa.DataType) -> Any:
    if pa.types.is_string(kind):
        if value is None:
            return None
        text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
        return text if text_files.is_unicode(text) else text.encode("utf-8", "replace").decode()
    if isinstance(value, int) and pa.types.is_floating(kind) and not isinstance(value, bool):
        return float(value) if abs(value) < 1 << 1023 else value
    if isinstance(value, str) and not pa.types.is_nested(kind):
        try:
            return None if value == "" else int(value) if pa.types.is_integer(kind) else float(value)
        except ValueError:
            return value
    return value


def _fits(value: Any, kind: pa.DataType) -> bool:
    try:
        pa.array([value], kind)
    except (pa.ArrowException, ValueError, OverflowError, TypeError):
        return False
    return True
