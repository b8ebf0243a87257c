"""substitute_tokens in Triton: a program a row.

`substitute_rows` holds a row of up to 8,192 logits in registers: one read, one write.
`substitute_long_rows` goes over longer ones in tiles, twice; the second time from a cache.

Launched without fused multiply-adds, so that the draw rounds as on every back end.
Shapes: M rows, V vocabulary, N banned ids, K candidates (as a power of two).
"""

import triton
import triton.language as tl

_SUBSTITUTION: tl.constexpr = tl.constexpr(1)  # stream of the counter contract
_IGNORE_INDEX: tl.constexpr = tl.constexpr(-100)
_NO_INDEX: tl.constexpr = tl.constexpr(2147483647)
_LOG2E: tl.constexpr = tl.constexpr(1.44269504)


@triton.jit
def _load(row, bias, v, V, limit, HAS_BIAS: tl.constexpr):
    """Elements v of a row as float32, -inf past its end; rounded as a product with a bias is.

    Up to `limit` a row may be touched: a multiple of 16 keeps the accesses vectors of 16 bytes.
    """
    x = tl.load(row + v, mask=v < limit, other=-float("inf"))
    if HAS_BIAS:
        b = tl.load(bias + v, mask=v < V, other=0.0)
        x = (x.to(tl.float32) + b.to(tl.float32)).to(x.dtype)
    return tl.where(v < V, x.to(tl.float32), -float("inf"))


@triton.jit
def _allowed(x, v, V, banned, N):
    """NaN, which has no order, and banned ids become -inf: never chosen."""
    x = tl.where(x == x, x, -float("inf"))
    for n in range(N):
        x = tl.where(v == tl.load(banned + n), -float("inf"), x)
    return x


@triton.jit
def _keep_largest(x, v, value, index, TOP_K: tl.constexpr, K: tl.constexpr):
    """Puts the TOP_K largest of x into the list, where they precede what is there."""
    slot = tl.arange(0, K)
    for _ in range(TOP_K):
        best = tl.max(x, 0)
        at = tl.min(tl.where(x == best, v, _NO_INDEX), 0)
        at = tl.where(best == -float("inf"), _NO_INDEX, at)
        x = tl.where(v == at, -float("inf"), x)
        # The last of the list: smallest value, and of equals the highest index.
        worst = tl.min(value, 0)
        last = tl.max(tl.where(value == worst, index, -1), 0)
        place = tl.min(tl.where((value == worst) & (index == last), slot, K), 0)
        better = (best > worst) | ((best == worst) & (at < last))
        place = tl.where(better, place, K)
        value = tl.where(slot == place, best, value)
        index = tl.where(slot == place, at, index)
    return value, index


@triton.jit
def _empty_list(TOP_K: tl.constexpr, K: tl.constexpr):
    """Slots past TOP_K hold +inf, so that nothing replaces them."""
    slot = tl.arange(0, K)
    value = tl.where(slot < TOP_K, -float("inf"), float("inf"))
    return value, tl.where(slot < TOP_K, _NO_INDEX, -1)


@triton.jit
def _draw(value, index, word, draw_scale, TOP_K: tl.constexpr, K: tl.constexpr):
    """One of the list, by integer weights floor(2^24 * 2^y) and the 32-bit word."""
    real = tl.arange(0, K) < TOP_K
    best = tl.max(tl.where(real, value, -float("inf")), 0)
    y = (value - best) * draw_scale
    y = tl.where(real & (y > -25.0), y, -25.0)
    whole = tl.floor(y)
    f = y - whole
    power = f * 0.00186699 + 0.00901733
    power = power * f + 0.05579971
    power = power * f + 0.2401645
    power = power * f + 0.6931513
    power = power * f + 1.0
    unit = ((whole.to(tl.int32) + 151) << 23).to(tl.float32, bitcast=True)  # 2^(whole + 24)
    weight = tl.where(real, (power * unit).to(tl.int64), 0)
    point = (word * tl.sum(weight, 0)) >> 32
    # Cumulative weight in the list's order, value descending and index ascending, without sorting.
    v, i = value[None, :], index[None, :]
    first = (v > value[:, None]) | ((v == value[:, None]) & (i <= index[:, None]))
    cumulative = tl.sum(tl.where(first & real[None, :], weight[None, :], 0), 1)
    hit = real & (cumulative > point) & (cumulative - weight <= point)
    return tl.sum(tl.where(hit, index, 0), 0)


@triton.jit
def _philox_word(position, L, example_ids, rng):
    b, t = position // L, position % L
    zero = (position * 0).to(tl.uint32)
    example, visit = tl.load(example_ids + b).to(tl.uint32), tl.load(rng + 1).to(tl.uint32)
    w0, _, _, _ = tl.philox(tl.load(rng), t.to(tl.uint32), example, visit, zero + _SUBSTITUTION)
    return w0.to(tl.uint32).to(tl.int64)


@triton.jit
def _write_row(
    m, x_target, target, V, shift, total, broken, value, index, positions, example_ids, rng,
    losses, tokens, input_ids, lse, BL, L, draw_scale, TOP_K: tl.constexpr, K: tl.constexpr,
):  # fmt: skip
    """Loss, log-sum-exp and token of row m."""
    nan = float("nan")
    log_total = tl.log(total)
    known = (target >= 0) & (target < V)
    loss = tl.where(broken | (known == 0), nan, log_total - (x_target - shift))
    tl.store(losses + m, tl.where(target == _IGNORE_INDEX, 0.0, loss))
    tl.store(lse + m, tl.where(broken, nan, log_total + shift))
    position = tl.load(positions + m)
    written = (position >= 0) & (position < BL)
    place = tl.where(written, position, 0)
    token = tl.load(input_ids + place, mask=written, other=-1)
    best = tl.max(tl.where(tl.arange(0, K) < TOP_K, value, -float("inf")), 0)
    if TOP_K == 1:
        chosen = tl.min(tl.where(value == best, index, _NO_INDEX), 0)
    else:
        word = _philox_word(place, L, example_ids, rng)
        chosen = _draw(value, index, word, draw_scale, TOP_K, K)
    token = tl.where(written & (broken == 0) & (best > -float("inf")), chosen.to(tl.int64), token)
    tl.store(tokens + m, token)
    tl.store(input_ids + place, token, mask=written)


@triton.jit
def _gradient(x, v, target, V, shift, total, broken, scale):
    """(p - onehot) * scale; 0 for an ignored row, NaN for a broken one."""
    e = tl.exp2((x - shift) * _LOG2E)
    bad = broken | (target >= V) | (target < 0)
    factor = tl.where(bad, float("nan"), scale / total)
    g = tl.where(v == target, e - total, e) * factor
    return tl.where((target == _IGNORE_INDEX) | (v >= V), 0.0, g)


@triton.jit
def substitute_rows(
    logits, bias, positions, targets, example_ids, rng, banned, losses, tokens, input_ids, lse,
    V, limit, row_stride, BL, L, N, draw_scale, gradient_scale,
    TOP_K: tl.constexpr, K: tl.constexpr, BLOCK: tl.constexpr,
    HAS_BIAS: tl.constexpr, GRADIENT: tl.constexpr,
):  # fmt: skip
    m = tl.program_id(0).to(tl.int64)
    row = logits + m * row_stride
    target = tl.load(targets + m)
    v = tl.arange(0, BLOCK)
    x = _load(row, bias, v, V, limit, HAS_BIAS)
    x_target = tl.sum(tl.where(v == target, x, 0.0), 0)
    finite = tl.where(x == x, x, -float("inf"))
    top = tl.max(finite, 0)
    shift = tl.where(top == -float("inf"), 0.0, top)
    broken = (tl.sum((x != x).to(tl.int32), 0) > 0) | (top == float("inf"))
    total = tl.sum(tl.exp2((finite - shift) * _LOG2E), 0)
    value, index = _empty_list(TOP_K, K)
    value, index = _keep_largest(_allowed(x, v, V, banned, N), v, value, index, TOP_K, K)
    _write_row(
        m, x_target, target, V, shift, total, broken, value, index, positions, example_ids, rng,
        losses, tokens, input_ids, lse, BL, L, draw_scale, TOP_K, K,
    )  # fmt: skip
    if GRADIENT:
        g = _gradient(x, v, target, V, shift, total, broken, gradient_scale)
        tl.store(row + v, g.to(logits.dtype.element_ty), mask=v < limit)


@triton.jit
def substitute_long_rows(
    logits, bias, positions, targets, example_ids, rng, banned, losses, tokens, input_ids, lse,
    V, limit, row_stride, BL, L, N, draw_scale, gradient_scale,
    TOP_K: tl.constexpr, K: tl.constexpr, BLOCK: tl.constexpr,
    HAS_BIAS: tl.constexpr, GRADIENT: tl.constexpr,
):  # fmt: skip
    m = tl.program_id(0).to(tl.int64)
    row = logits + m * row_stride
    target = tl.load(targets + m)
    value, index = _empty_list(TOP_K, K)
    shift, total, x_target, top, nans = 0.0, 0.0, 0.0, -float("inf"), 0
    for start in range(0, V, BLOCK):
        v = start + tl.arange(0, BLOCK)
        x = _load(row, bias, v, V, limit, HAS_BIAS)
        x_target += tl.sum(tl.where(v == target, x, 0.0), 0)
        nans += tl.sum((x != x).to(tl.int32), 0)
        finite = tl.where(x == x, x, -float("inf"))
        higher = tl.maximum(top, tl.max(finite, 0))
        next_shift = tl.where(higher == -float("inf"), 0.0, higher)
        part = tl.sum(tl.exp2((finite - next_shift) * _LOG2E), 0)
        # Nothing but -inf so far has no scale.
        before = tl.where(total == 0.0, 0.0, total * tl.exp2((shift - next_shift) * _LOG2E))
        total, shift, top = before + part, next_shift, higher
        value, index = _keep_largest(_allowed(x, v, V, banned, N), v, value, index, TOP_K, K)
    broken = (nans > 0) | (top == float("inf"))
    _write_row(
        m, x_target, target, V, shift, total, broken, value, index, positions, example_ids, rng,
        losses, tokens, input_ids, lse, BL, L, draw_scale, TOP_K, K,
    )  # fmt: skip
    if GRADIENT:
        for start in range(0, V, BLOCK):
            v = start + tl.arange(0, BLOCK)
            x = _load(row, bias, v, V, limit, HAS_BIAS)
            g = _gradient(x, v, target, V, shift, total, broken, gradient_scale)
            tl.store(row + v, g.to(logits.dtype.element_ty), mask=v < limit)
