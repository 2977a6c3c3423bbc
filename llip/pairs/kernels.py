"""Triton kernels of `triton_tiles`: mixtures of one tile through Gram matrices, and the gradients that follow.

Operands are read in their precision and summed in `WIDE`. Each sum belongs to one program and is made in one order, so
results are the same every time. Names in capitals are constants of a compiled kernel: sizes of the model, and of the
blocks that a program holds (see `triton_tiles.Blocks`).

Memory: weights and slopes of weights [I, X, J], X = M·K · keys and values [M, K·I, E] · a message [J, 2·M·E], queries
before targets, with a stride · Gram matrices [I, X, X], edges [X, I] · what is of pairs [I, J].
"""

# mypy: disable-error-code="no-untyped-def, untyped-decorator"

import triton
import triton.language as tl


@triton.jit
def _tokens(source, row, own, e, WIDTH: tl.constexpr):
    """Some widths `e` of the keys or values at some rows [N], [N, E]."""
    return tl.load(source + row[:, None] * WIDTH + e[None, :], mask=own[:, None] & (e < WIDTH)[None, :], other=0)


@triton.jit
def _message(source, j, columns, stride, head, e, WIDTH: tl.constexpr):
    """Some widths `e` of a head in the queries of some columns, or, further on, in their targets, [E, J]."""
    mask = (e < WIDTH)[:, None] & (j < columns)[None, :]
    return tl.load(source + j[None, :] * stride + head * WIDTH + e[:, None], mask=mask, other=0)


@triton.jit
def mix(
    weight,
    numerator,
    key,
    value,
    message,
    rows,
    columns,
    stride,
    TEMPERATURE: tl.constexpr,
    HEADS: tl.constexpr,
    TOKENS: tl.constexpr,
    WIDTH: tl.constexpr,
    PADDED: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    STEP: tl.constexpr,
    WIDE: tl.constexpr,
):
    """Weights less 1/K, rounded, and the numerators `z·t̂` of mixtures by these rounded weights."""
    across = tl.cdiv(columns, COLUMNS)
    first = tl.program_id(0) // across * ROWS
    j = tl.program_id(0) % across * COLUMNS + tl.arange(0, COLUMNS)
    n = tl.arange(0, ROWS * PADDED)
    i, k = first + n // PADDED, n % PADDED
    own = (i < rows) & (k < TOKENS)
    total = tl.zeros([ROWS, COLUMNS], WIDE)
    for head in range(HEADS):
        row = (head * TOKENS + k) * rows + i
        logit = tl.zeros([ROWS * PADDED, COLUMNS], WIDE)
        seen = tl.zeros([ROWS * PADDED, COLUMNS], WIDE)
        for start in range(0, WIDTH, STEP):
            e = start + tl.arange(0, STEP)
            query = _message(message, j, columns, stride, head, e, WIDTH)
            logit = tl.dot(_tokens(key, row, own, e, WIDTH), query, logit, input_precision="ieee", out_dtype=WIDE)
            target = _message(message + HEADS * WIDTH, j, columns, stride, head, e, WIDTH)
            seen = tl.dot(_tokens(value, row, own, e, WIDTH), target, seen, input_precision="ieee", out_dtype=WIDE)
        logit = tl.where((k < TOKENS)[:, None], logit / TEMPERATURE, float("-inf"))
        logit = tl.reshape(logit, [ROWS, PADDED, COLUMNS])
        exponential = tl.exp(logit - tl.max(logit, axis=1)[:, None, :])
        centred = exponential / tl.sum(exponential, axis=1)[:, None, :] - 1 / TOKENS
        centred = tl.where((tl.arange(0, PADDED) < TOKENS)[None, :, None], centred, 0.0)
        centred = centred.to(weight.dtype.element_ty)
        at = (i.to(tl.int64) * HEADS * TOKENS + head * TOKENS + k) * columns
        flat = tl.reshape(centred, [ROWS * PADDED, COLUMNS])
        tl.store(weight + at[:, None] + j[None, :], flat, mask=own[:, None] & (j < columns)[None, :])
        # The mean apart: rounded weights do not sum to 1.
        seen = tl.reshape(seen, [ROWS, PADDED, COLUMNS])
        mean = tl.sum(seen, axis=1) / TOKENS
        total += tl.sum(centred.to(WIDE) * (seen - mean[:, None, :]), axis=1) + mean
    i = first + tl.arange(0, ROWS)
    tl.store(numerator + i[:, None] * columns + j[None, :], total, mask=(i < rows)[:, None] & (j < columns)[None, :])


@triton.jit
def score(
    cosine,
    inverse,
    clamped,
    slope,
    weight,
    numerator,
    value,
    message,
    high,
    low,
    edge,
    corner,
    scratch,
    rows,
    columns,
    stride,
    SMALLEST: tl.constexpr,
    HEADS: tl.constexpr,
    TOKENS: tl.constexpr,
    WIDTH: tl.constexpr,
    PADDED: tl.constexpr,
    BLOCK: tl.constexpr,
    INNER: tl.constexpr,
    COLUMNS: tl.constexpr,
    STEP: tl.constexpr,
    SPLIT: tl.constexpr,
    GRADIENTS: tl.constexpr,
    WIDE: tl.constexpr,
):
    """Cosines, inverse norms, clamped pairs, and the slopes of logits `a (x - Σ a x)`, `x = w - r (GD + b)`.

    A slope is the gradient of a logit but for the factor ṅ of the pair, which the loss decides. A program takes one row
    and some columns after another; `GD + b` waits in its part of `scratch`, [X, COLUMNS], until the norm is known.
    """
    SIZE: tl.constexpr = HEADS * TOKENS
    across = tl.cdiv(columns, COLUMNS)
    own = scratch + tl.program_id(0) * SIZE * COLUMNS
    place = tl.arange(0, COLUMNS)
    for work in range(tl.program_id(0), rows * across, tl.num_programs(0)):
        row = work // across
        far = tl.cast(row, tl.int64) * SIZE
        j = work % across * COLUMNS + place
        inside = j < columns
        square = tl.zeros([COLUMNS], WIDE) + tl.load(corner + row)
        for first in range(0, SIZE, BLOCK):
            x = first + tl.arange(0, BLOCK)
            seen = tl.zeros([BLOCK, COLUMNS], WIDE)
            for second in range(0, SIZE, INNER):
                y = second + tl.arange(0, INNER)
                mask = (y < SIZE)[:, None] & inside[None, :]
                other = tl.load(weight + (far + y)[:, None] * columns + j[None, :], mask=mask, other=0)
                at, mask = (far + x)[:, None] * SIZE + y[None, :], (x < SIZE)[:, None] & (y < SIZE)[None, :]
                gram = tl.load(high + at, mask=mask, other=0)
                seen = tl.dot(gram, other, seen, input_precision="ieee", out_dtype=WIDE)
                if SPLIT:
                    gram = tl.load(low + at, mask=mask, other=0)
                    seen = tl.dot(gram, other, seen, input_precision="ieee", out_dtype=WIDE)
            mask = (x < SIZE)[:, None] & inside[None, :]
            centred = tl.load(weight + (far + x)[:, None] * columns + j[None, :], mask=mask, other=0).to(WIDE)
            of_mean = tl.load(edge + x * rows + row, mask=x < SIZE, other=0)[:, None]
            square += tl.sum(centred * (seen + 2 * of_mean), axis=0)
            if GRADIENTS:
                tl.store(own + x[:, None] * COLUMNS + place[None, :], seen + of_mean, mask=(x < SIZE)[:, None])
        product = tl.load(numerator + row * columns + j, mask=inside, other=0)
        bound = product * product
        norm = 1 / tl.sqrt(tl.maximum(tl.maximum(square, bound), SMALLEST))
        ratio = tl.minimum(tl.maximum(product * norm, -1.0), 1.0)
        tl.store(cosine + row * columns + j, ratio, mask=inside)
        tl.store(inverse + row * columns + j, norm, mask=inside)
        tl.store(clamped + row * columns + j, square < bound, mask=inside)
        if GRADIENTS:
            ratio *= norm
            tl.debug_barrier()  # all of the program's threads have written their part of `GD + b`
            k = tl.arange(0, PADDED)
            for head in range(HEADS):
                seen = tl.zeros([PADDED, COLUMNS], WIDE)
                for start in range(0, WIDTH, STEP):
                    e = start + tl.arange(0, STEP)
                    token = _tokens(value, (head * TOKENS + k) * rows + row, k < TOKENS, e, WIDTH)
                    target = _message(message + HEADS * WIDTH, j, columns, stride, head, e, WIDTH)
                    seen = tl.dot(token, target, seen, input_precision="ieee", out_dtype=WIDE)
                x, mask = head * TOKENS + k, (k < TOKENS)[:, None] & inside[None, :]
                at = (far + x)[:, None] * columns + j[None, :]
                part = own + x[:, None] * COLUMNS + place[None, :]
                seen -= ratio[None, :] * tl.load(part, mask=(k < TOKENS)[:, None], other=0)
                whole = tl.load(weight + at, mask=mask, other=0).to(WIDE)
                whole = tl.where((k < TOKENS)[:, None], whole + 1 / TOKENS, 0.0)
                mean = tl.sum(whole * seen, axis=0) / tl.sum(whole, axis=0)
                seen = whole * (seen - mean[None, :])
                tl.store(slope + at, seen.to(slope.dtype.element_ty), mask=mask)
            tl.debug_barrier()  # and have read it, before the next one is written


@triton.jit
def _operands(weight, slope, factor, i, x, j, own, rows, columns, SIZE: tl.constexpr, TOKENS: tl.constexpr):
    """`ṅ a` and `ṅ` times the slopes of some weights [N, J], in the precision of products."""
    mask = own[:, None] & (j < columns)[None, :]
    at = (i.to(tl.int64) * SIZE + x)[:, None] * columns + j[None, :]
    of_pair = tl.load(factor + i[:, None] * columns + j[None, :], mask=mask, other=0)
    centred = tl.load(weight + at, mask=mask, other=0)
    whole = (centred.to(of_pair.dtype) + 1 / TOKENS) * of_pair
    along = tl.load(slope + at, mask=mask, other=0).to(of_pair.dtype) * of_pair
    return whole.to(centred.dtype), along.to(centred.dtype)


@triton.jit
def rows_backward(
    key_gradient,
    value_gradient,
    weight,
    slope,
    factor,
    message,
    rows,
    columns,
    stride,
    TEMPERATURE: tl.constexpr,
    HEADS: tl.constexpr,
    TOKENS: tl.constexpr,
    WIDTH: tl.constexpr,
    WIDTH_PADDED: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    WIDE: tl.constexpr,
):
    """Add `Σ_j ṅ a (x - Σ a x) q / τ` to the gradients of keys and `Σ_j ṅ a u` to those of values."""
    head = tl.program_id(1)
    n = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    own, e = n < TOKENS * rows, tl.arange(0, WIDTH_PADDED)
    of_key, of_value = tl.zeros([ROWS, WIDTH_PADDED], WIDE), tl.zeros([ROWS, WIDTH_PADDED], WIDE)
    for start in range(0, columns, COLUMNS):
        j = start + tl.arange(0, COLUMNS)
        whole, along = _operands(
            weight, slope, factor, n % rows, head * TOKENS + n // rows, j, own, rows, columns, HEADS * TOKENS, TOKENS
        )
        query = tl.trans(_message(message, j, columns, stride, head, e, WIDTH))
        of_key = tl.dot(along, query, of_key, input_precision="ieee", out_dtype=WIDE)
        target = tl.trans(_message(message + HEADS * WIDTH, j, columns, stride, head, e, WIDTH))
        of_value = tl.dot(whole, target, of_value, input_precision="ieee", out_dtype=WIDE)
    at = (head * TOKENS * rows + n)[:, None] * WIDTH + e[None, :]
    mask = own[:, None] & (e < WIDTH)[None, :]
    tl.store(key_gradient + at, tl.load(key_gradient + at, mask=mask) + of_key / TEMPERATURE, mask=mask)
    tl.store(value_gradient + at, tl.load(value_gradient + at, mask=mask) + of_value, mask=mask)


@triton.jit
def columns_backward(
    message_gradient,
    weight,
    slope,
    factor,
    key,
    value,
    rows,
    columns,
    stride,
    TEMPERATURE: tl.constexpr,
    HEADS: tl.constexpr,
    TOKENS: tl.constexpr,
    WIDTH: tl.constexpr,
    WIDTH_PADDED: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    WIDE: tl.constexpr,
):
    """Add `Σ_ik ṅ a (x - Σ a x) k / τ` to the gradients of queries and `Σ_ik ṅ a v` to those of targets."""
    head = tl.program_id(1)
    j = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    e = tl.arange(0, WIDTH_PADDED)
    of_query, of_target = tl.zeros([COLUMNS, WIDTH_PADDED], WIDE), tl.zeros([COLUMNS, WIDTH_PADDED], WIDE)
    for start in range(0, TOKENS * rows, ROWS):
        n = start + tl.arange(0, ROWS)
        own, row = n < TOKENS * rows, head * TOKENS * rows + n
        whole, along = _operands(
            weight, slope, factor, n % rows, head * TOKENS + n // rows, j, own, rows, columns, HEADS * TOKENS, TOKENS
        )
        token = _tokens(key, row, own, e, WIDTH)
        of_query = tl.dot(tl.trans(along), token, of_query, input_precision="ieee", out_dtype=WIDE)
        token = _tokens(value, row, own, e, WIDTH)
        of_target = tl.dot(tl.trans(whole), token, of_target, input_precision="ieee", out_dtype=WIDE)
    at = message_gradient + j[:, None] * stride + head * WIDTH + e[None, :]
    mask = (j < columns)[:, None] & (e < WIDTH)[None, :]
    tl.store(at, tl.load(at, mask=mask) + of_query / TEMPERATURE, mask=mask)
    at += HEADS * WIDTH
    tl.store(at, tl.load(at, mask=mask) + of_target, mask=mask)


@triton.jit
def gram_backward(
    gram_gradient,
    edge_gradient,
    weight,
    factor,
    ratio,
    rows,
    columns,
    SIZE: tl.constexpr,
    BLOCK: tl.constexpr,
    COLUMNS: tl.constexpr,
    WIDE: tl.constexpr,
):
    """Add `-½ Σ_j ṅ r D Dᵀ` to the gradients of Gram matrices, and `Σ_j ṅ r D` to the edges' of this tile.

    A Gram matrix is symmetric: the blocks above the diagonal get what the blocks below it would get too.
    """
    row, upper = tl.program_id(0), tl.program_id(1) <= tl.program_id(2)
    if upper:
        far = tl.cast(row, tl.int64) * SIZE
        x = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
        y = tl.program_id(2) * BLOCK + tl.arange(0, BLOCK)
        outer, edge = tl.zeros([BLOCK, BLOCK], WIDE), tl.zeros([BLOCK], WIDE)
        for start in range(0, columns, COLUMNS):
            j = start + tl.arange(0, COLUMNS)
            inside = j < columns
            of_pair = tl.load(factor + row * columns + j, mask=inside, other=0)
            of_pair *= tl.load(ratio + row * columns + j, mask=inside, other=0)
            mask = (x < SIZE)[:, None] & inside[None, :]
            left = tl.load(weight + (far + x)[:, None] * columns + j[None, :], mask=mask, other=0)
            mask = (y < SIZE)[:, None] & inside[None, :]
            right = tl.load(weight + (far + y)[:, None] * columns + j[None, :], mask=mask, other=0)
            gamma = (left.to(WIDE) * of_pair[None, :]).to(left.dtype)
            outer = tl.dot(gamma, tl.trans(right), outer, input_precision="ieee", out_dtype=WIDE)
            edge += tl.sum(gamma.to(WIDE), axis=1)
        on_diagonal = tl.program_id(1) == tl.program_id(2)
        at = gram_gradient + (far + x)[:, None] * SIZE + y[None, :]
        mask = (x < SIZE)[:, None] & (y < SIZE)[None, :]
        tl.store(at, tl.load(at, mask=mask) - outer * tl.where(on_diagonal, 0.5, 1.0), mask=mask)
        if on_diagonal:
            of_edge = edge_gradient + x * rows + row
            tl.store(of_edge, tl.load(of_edge, mask=x < SIZE) + edge, mask=x < SIZE)
