"""Blocks of the kernels of `triton_tiles`, and their work: products, and bytes of memory and of cache.

Axes: as in `tiles`, but X = M·K.
"""

from typing import NamedTuple

from llip.devices import Device


class Blocks(NamedTuple):
    """Blocks of the programs: powers of two, as Triton wants them, and at least 16, as its products do."""

    tokens: int
    """Tokens of a head, padded."""
    mix_rows: int
    mix_columns: int
    gram: int
    """Rows and columns of a part of a Gram matrix."""
    gram_inner: int
    score_columns: int
    width_step: int
    """Numbers of a head that a product takes at once."""
    width: int
    """Width of a head, padded."""
    rows: int
    """Tokens of one head and several rows."""
    columns: int
    inner: int
    """Columns that a sum over them takes at once."""


def blocks(heads: int, tokens: int, width: int) -> Blocks:
    """Blocks whose sums fit into the registers of a program: 64 KiB of them, or 32 of each of two."""
    padded, size = _power(tokens), _power(heads * tokens)
    step = next((step for step in (64, 32, 16) if width % step == 0), min(64, _power(width)))
    mix_rows = max(1, 128 // padded)
    return Blocks(
        tokens=padded,
        mix_rows=mix_rows,
        mix_columns=max(16, 8192 // (mix_rows * padded)),
        gram=min(128, size),
        gram_inner=min(64, size),
        score_columns=min(128, 16384 // padded),
        width_step=step,
        width=_power(width),
        rows=128 if width <= 64 else 64,
        columns=64,
        inner=64 if width <= 64 else 32,
    )


def _power(number: int) -> int:
    return max(16, 1 << (number - 1).bit_length())


class Work(NamedTuple):
    """Work of a kernel."""

    flops: float
    """FLOPs of its products, padding included."""
    memory: float
    """Bytes between the device's memory and its cache: each tensor once."""
    cache: float
    """Bytes between the cache and the programs, that is, bytes that a program reads and writes times the programs."""


def work(
    rows: int, columns: int, heads: int, tokens: int, width: int, *, split: bool, gradients: bool = True, item: int = 2
) -> dict[str, Work]:
    """Work of each kernel for a tile, with `item` bytes in a number of the operands."""
    own, size, dim = blocks(heads, tokens, width), heads * tokens, heads * width
    pairs, parts = rows * columns, 2 if split else 1
    padded, steps = _ceil(size, own.gram) * own.gram, _ceil(width, own.width_step) * own.width_step
    weight, token, message = pairs * size * item, rows * tokens * dim * item, columns * dim * item
    gram = rows * size * size
    by_rows, by_columns = _ceil(rows, own.mix_rows), _ceil(columns, own.mix_columns)
    found = {
        "mix": Work(
            4.0 * pairs * own.tokens * heads * steps,
            2 * token + 2 * message + weight + 4 * pairs,
            by_columns * 2 * token + by_rows * 2 * message + weight + 4 * pairs,
        )
    }
    across = _ceil(columns, own.score_columns)
    phases = 1 if gradients else 0
    found["score"] = Work(
        2.0 * parts * pairs * padded * padded + phases * 2.0 * pairs * own.tokens * heads * steps,
        parts * gram * item + phases * (token + message + weight) + weight + 13 * pairs,
        across * (parts * gram * item + phases * token)
        + (padded // own.gram + 1 + 2 * phases) * weight
        + phases * (rows * message + 8 * pairs * size)
        + 13 * pairs,
    )
    if not gradients:
        return found
    blocks_of_gram = padded // own.gram
    upper = blocks_of_gram * (blocks_of_gram + 1) / 2 * own.gram**2
    found["rows_backward"] = Work(
        4.0 * pairs * size * own.width,
        2 * weight + 2 * message + 16 * rows * tokens * dim + 4 * pairs,
        2 * weight + _ceil(rows * tokens, own.rows) * 2 * message + 16 * rows * tokens * dim + 4 * pairs * size,
    )
    found["columns_backward"] = Work(
        4.0 * pairs * size * own.width,
        2 * weight + 2 * token + 16 * columns * dim + 4 * pairs,
        2 * weight + _ceil(columns, own.columns) * 2 * token + 16 * columns * dim + 4 * pairs * size,
    )
    found["gram_backward"] = Work(
        2.0 * pairs * upper,
        weight + 8 * rows * upper + 8 * pairs,
        2.0 * pairs * upper / own.gram * item + 8 * rows * upper + 8 * pairs,
    )
    return found


def _ceil(number: int, size: int) -> int:
    return -(-number // size)


def seconds(done: Work, device: Device) -> float:
    """Time of a kernel on a device: that of its products, of its memory or of its cache, whichever is longest."""
    of_memory = 0.0 if device.bandwidth is None else done.memory / device.bandwidth
    return max(done.flops / device.kernel_flops, of_memory, done.cache / device.cache_bandwidth)


def seconds_of_pair(
    device: Device, *, heads: int, tokens: int, width: int, split: bool, gradients: bool = True
) -> float:
    """Time of a pair of a tile of 128 rows and 2,048 columns."""
    done = work(128, 2048, heads, tokens, width, split=split, gradients=gradients)
    return sum(seconds(of_kernel, device) for of_kernel in done.values()) / (128 * 2048)
