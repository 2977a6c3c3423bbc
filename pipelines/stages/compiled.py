"""Compiled loops over Arrow buffers: numba, ahead of the first call and kept on disk for the next process."""

import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numba
import numpy as np
import pyarrow as pa
from numba import types


def _cache_folder() -> str:
    """Place of the machine code: beside the source as numba has it, else (an image mounted read-only) in the
    temporary folder."""
    beside = Path(__file__).parent
    if os.access(beside, os.W_OK):
        return ""
    return str(Path(tempfile.gettempdir()) / f"llip-numba-{os.getuid()}")


if not numba.config.CACHE_DIR:  # type: ignore[attr-defined]
    numba.config.CACHE_DIR = _cache_folder()  # type: ignore[attr-defined]


def _vector(dtype: Any, readonly: bool) -> types.Array:
    return types.Array(dtype, 1, "C", readonly=readonly)


class In:
    """Contiguous vectors that are only read: Arrow's buffers and arrays in Ray's object store can't be written to."""

    uint8, int32 = _vector(types.uint8, True), _vector(types.int32, True)
    int64, uint64 = _vector(types.int64, True), _vector(types.uint64, True)
    float64 = _vector(types.float64, True)


class Out:
    """Contiguous vectors that are written."""

    uint8, int32 = _vector(types.uint8, False), _vector(types.int32, False)
    int64, uint64 = _vector(types.int64, False), _vector(types.uint64, False)
    float64, boolean = _vector(types.float64, False), _vector(types.boolean, False)


def jit(signature: Any, **options: Any) -> Callable[[Callable[..., Any]], Any]:
    """Compile for one signature at import: a worker finds the code in the cache instead of compiling in the middle
    of its first task."""
    return numba.njit(signature, cache=True, nogil=True, **options)


def string_buffers(strings: pa.StringArray | pa.BinaryArray) -> tuple[np.ndarray, np.ndarray]:
    """The bytes (uint8; of strings UTF-8) and the offsets (int32 [N + 1]) of an Arrow array, without a copy. A null
    string has no bytes."""
    if not (pa.types.is_string(strings.type) or pa.types.is_binary(strings.type)):
        raise TypeError(f"expected an array of strings or bytes, got {strings.type}")
    _, offsets, data = strings.buffers()
    if offsets is None or len(strings) == 0:
        return np.zeros(0, np.uint8), np.zeros(len(strings) + 1, np.int32)
    positions = np.frombuffer(offsets, np.int32)[strings.offset : strings.offset + len(strings) + 1]
    content = np.frombuffer(data, np.uint8) if data is not None and data.size else np.zeros(0, np.uint8)
    return content, positions
