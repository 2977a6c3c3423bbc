"""The kernels of one size of mixtures, compiled for an A100: shared memory and stack of each, in bytes, as JSON.

    python tests/helpers/triton_for_a100.py HEADS TOKENS WIDTH

Needs no GPU, and a process of its own: `TRITON_INTERPRET` decides once what a kernel is.
"""

import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import triton
from torch import Tensor
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from llip.pairs import kernels, triton_tiles

TYPES = {torch.bfloat16: "*bf16", torch.float32: "*fp32", torch.bool: "*i1"}
NAMES = ("mix", "score", "rows_backward", "columns_backward", "gram_backward")
TOOL = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"


class Compiler:
    """In place of a kernel: a launch compiles it, and notes what comes out."""

    def __init__(self, kernel: Any, found: dict[str, dict[str, int]]) -> None:
        self._kernel, self._found = kernel, found

    def __getitem__(self, grid: tuple[int, ...]) -> "Compiler":
        return self

    def __call__(self, *tensors: Tensor | int, num_warps: int, **constants: Any) -> None:
        names = self._kernel.arg_names
        signature = dict.fromkeys(names, "constexpr") | {
            name: TYPES[t.dtype] if isinstance(t, Tensor) else "i32" for name, t in zip(names, tensors, strict=False)
        }
        aligned = {
            (i,): [["tt.divisibility", 16]] for i, t in enumerate(tensors) if isinstance(t, Tensor) or t % 16 == 0
        }
        of_place = {(names.index(name),): value for name, value in constants.items()}
        source = ASTSource(self._kernel, signature, of_place, aligned)
        made = triton.compile(source, target=GPUTarget("cuda", 80, 32), options={"num_warps": num_warps})
        with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
            file.write(made.asm["cubin"])
            file.flush()
            usage = subprocess.run([TOOL, "-res-usage", file.name], capture_output=True, text=True, check=True).stdout
        stack = re.search(r"STACK:(\d+)", usage)
        assert stack is not None, usage
        self._found[self._kernel.__name__] = {"shared": made.metadata.shared, "stack": int(stack[1])}


def main(heads: int, tokens: int, width: int) -> None:
    found: dict[str, dict[str, int]] = {}
    compilers: Any = {name: Compiler(getattr(kernels, name), found) for name in NAMES}
    rows, columns, size, dim = 256, 2048, heads * tokens, heads * width
    with (
        torch.device("meta"),
        mock.patch.multiple(kernels, **compilers),
    ):
        pair, row = torch.empty(rows, columns), torch.empty(heads, tokens * rows, width)
        gram, edge, message = torch.empty(rows, size, size), torch.empty(size, rows), torch.empty(columns, 2 * dim)
        weight, operand, text = torch.empty(rows, size, columns).bfloat16(), row.bfloat16(), message.bfloat16()
        triton_tiles.score_mixtures._init_fn(
            weight, weight, pair, pair, pair > 0, operand, operand, text, 2 * [gram.bfloat16()], edge, edge[0], 5.0
        )
        triton_tiles.mixture_gradients._init_fn(
            row, row, gram, edge, message, weight, weight, pair, pair, operand, operand, text, 5.0
        )
    print(json.dumps(found))


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
