"""bf16 in Triton's interpreter as a GPU has it.

The interpreter keeps bf16 as 16-bit integers: its products multiply these, and its casts to bf16 cut off.
"""

import contextlib
from collections.abc import Iterator
from typing import Any
from unittest import mock

import numpy as np
import torch


@contextlib.contextmanager
def as_on_a_gpu() -> Iterator[None]:
    """Products take the values of bf16, and casts round to nearest."""
    import triton.language as tl
    from triton.runtime.interpreter import InterpreterBuilder, TensorHandle

    cast, dot = InterpreterBuilder.cast_impl, InterpreterBuilder.create_dot

    def widened(handle: Any) -> Any:
        if handle.dtype.scalar != tl.bfloat16:
            return handle
        return TensorHandle((handle.data.astype(np.uint32) << 16).view(np.float32), tl.float32)

    def cast_bf16(self: Any, source: Any, to: Any) -> Any:
        if (source.dtype.scalar, to.scalar) == (tl.bfloat16, tl.float32):
            return widened(source)
        if (source.dtype.scalar, to.scalar) == (tl.float32, tl.bfloat16):
            rounded = torch.from_numpy(np.ascontiguousarray(source.data)).bfloat16()
            return TensorHandle(rounded.view(torch.uint16).numpy(), tl.bfloat16)
        return cast(self, source, to)

    def dot_bf16(self: Any, left: Any, right: Any, *rest: Any) -> Any:
        return dot(self, widened(left), widened(right), *rest)

    with (
        mock.patch.object(InterpreterBuilder, "cast_impl", cast_bf16),
        mock.patch.object(InterpreterBuilder, "create_dot", dot_bf16),
    ):
        yield
