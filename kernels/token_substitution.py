"""substitute_tokens in Triton: one program per row, which goes over the row twice.

A tile of a row is [LANES, W]. W adjacent logits are 16 bytes, and a thread holds the same lanes of
every tile. The first sweep keeps, per lane, the running maximum and sum of the softmax, and the
largest logit that may be chosen. The lanes are combined once, after the last tile. The second sweep
reads the row again, from a cache, and overwrites it by the gradient.

Between the two, the largest allowed logits are taken from the lanes in descending order. When the
largest logit of a lane has been taken, the next one is looked for in the column of that lane, which
consists of its logits in all tiles.

The tiles end at a multiple of 16, so that every access to them is a vector of 16 bytes whatever the
size of the vocabulary. The remaining logits, of which there are up to 15, are called the tail.

The kernel is compiled without fused multiply-adds, so that the draw rounds as on every back end.
Shapes: M rows, V vocabulary, N banned ids, K candidates (top_k rounded up to a power of two), W
logits in 16 bytes, LANES lanes, TILES tiles of a row (rounded up to a power of two).
"""

import triton
import triton.language as tl

_SUBSTITUTION: tl.constexpr = tl.constexpr(1)  # a stream of the counter contract
_IGNORE_INDEX: tl.constexpr = tl.constexpr(-100)
_NO_INDEX: tl.constexpr = tl.constexpr(2147483647)
_LOWEST: tl.constexpr = tl.constexpr(-3.4028234663852886e38)  # the lowest finite float32
_TAIL: tl.constexpr = tl.constexpr(16)
_LOG2E: tl.constexpr = tl.constexpr(1.44269504)


@triton.jit
def _exp(x):
    return tl.exp2(x * _LOG2E)


@triton.jit
def _exp_of_difference(x, higher):
    """e^(x - higher). The bound keeps the product finite; the result below it is 0 anyway."""
    return _exp(tl.maximum(x - higher, -1000.0))


@triton.jit
def _load(row, bias, v, mask):
    """The logits v of a row as float32, and -inf outside the mask.

    A sum with the bias is rounded to the dtype of the logits, as that of a matrix product is.
    """
    x = tl.load(row + v, mask=mask, other=-float("inf"))
    if bias is not None:
        b = tl.load(bias + v, mask=mask, other=0.0)
        x = (x.to(tl.float32) + b.to(tl.float32)).to(x.dtype)
    return x.to(tl.float32)


@triton.jit
def _without_banned(x, mask, v, inside):
    """The logits x of the ids v, and -inf for those that are set in the mask [V] of banned ids."""
    return tl.where(tl.load(mask + v, mask=inside, other=1) != 0, -float("inf"), x)


@triton.jit
def _first_sweep(
    row, bias, banned, whole, end, W: tl.constexpr, LANES: tl.constexpr, BANNED: tl.constexpr
):
    """Per lane: maximum and sum of the softmax, largest allowed logit and the start of its tile.

    A NaN makes the sum NaN.
    """
    place = tl.arange(0, LANES)[:, None] * W + tl.arange(0, W)[None, :]
    top = tl.full((LANES,), _LOWEST, tl.float32)
    total = tl.zeros((LANES,), tl.float32)
    value = tl.full((LANES,), -float("inf"), tl.float32)
    tile = tl.zeros((LANES,), tl.int32)
    for start in range(0, whole, LANES * W):
        v = start + place
        x = _load(row, bias, v, v < whole)
        largest = tl.max(x, 1)
        higher = tl.maximum(top, largest)
        total = total * _exp_of_difference(top, higher) + tl.sum(_exp(x - higher[:, None]), 1)
        top = higher
        if BANNED == "mask":
            x = _without_banned(x, banned, v, v < whole)
            largest = tl.max(x, 1)
        if start + LANES * W > end:
            largest = tl.max(tl.where(v < end, x, -float("inf")), 1)
        # Of equal logits the one of the first tile stays, which has the lower id.
        tile = tl.where(largest > value, start, tile)
        value = tl.maximum(value, largest)
    return top, total, value, tile


@triton.jit
def _choose(
    row, bias, banned, N, whole, end, value, tile, tail, best,
    W: tl.constexpr, LANES: tl.constexpr, TILES: tl.constexpr, BANNED: tl.constexpr,
    LIST: tl.constexpr, TOP_K: tl.constexpr, K: tl.constexpr,
):  # fmt: skip
    """The TOP_K largest allowed logits in descending order, and their ids; the lower id goes first.

    `best` is the largest of them. Ids in a list `banned` are found like the others, but not kept.
    """
    lane, slot, place = tl.arange(0, LANES), tl.arange(0, K), tl.arange(0, TILES * W)
    column = place // W * (LANES * W) + place % W
    v_tail = whole + tl.arange(0, _TAIL)
    if BANNED == "list":
        n = tl.arange(0, LIST)
        listed = tl.load(banned + n, mask=n < N, other=-1)
    chosen_value = tl.full((K,), -float("inf"), tl.float32)
    chosen = tl.zeros((K,), tl.int32)
    found, at = 0, -1
    before = float("inf")  # the value of the last logit that was taken; its id is `at`
    while (found < TOP_K) & (best > -float("inf")):
        before_at = at
        at = tl.min(tl.where(value == best, tile + lane * W, _NO_INDEX), 0)
        if at == _NO_INDEX:
            at = tl.min(tl.where(tail == best, v_tail, _NO_INDEX), 0)
            tail = tl.where(v_tail == at, -float("inf"), tail)
        else:
            source = at // W % LANES
            v = column + source * W
            x = _load(row, bias, v, v < tl.minimum(whole, end))
            if BANNED == "mask":
                x = _without_banned(x, banned, v, v < whole)
            # The logits that are left follow the last one taken, in the order of the result.
            left = (x < before) | ((x == before) & (v > before_at))
            at = tl.min(tl.where(left & (x == best), v, _NO_INDEX), 0)
            x = tl.where((x < best) | ((x == best) & (v > at)), x, -float("inf"))
            following = tl.max(x, 0)
            following_at = tl.min(tl.where(x == following, v, _NO_INDEX), 0)
            value = tl.where(lane == source, following, value)
            tile = tl.where(lane == source, following_at // (LANES * W) * (LANES * W), tile)
        take = slot == found
        if BANNED == "list":
            take = take & (tl.max((listed == at).to(tl.int32), 0) == 0)
        chosen_value = tl.where(take, best, chosen_value)
        chosen = tl.where(take, at, chosen)
        found += tl.sum(take.to(tl.int32), 0)
        before = best
        best = tl.maximum(tl.max(value, 0), tl.max(tail, 0))
    return chosen_value, chosen


@triton.jit
def _draw(value, index, word, draw_scale):
    """One of the ids `index`, by integer weights floor(2^24 * 2^y) and a random 32-bit word."""
    y = (value - tl.max(value, 0)) * draw_scale
    y = tl.where(y > -25.0, y, -25.0)
    whole = tl.floor(y)
    f = y - whole
    power = f * 0.00186699 + 0.00901733
    power = power * f + 0.05579971
    power = power * f + 0.2401645
    power = power * f + 0.6931513
    power = power * f + 1.0
    unit = ((whole.to(tl.int32) + 151) << 23).to(tl.float32, bitcast=True)  # 2^(whole + 24)
    weight = (power * unit).to(tl.int64)
    point = (word * tl.sum(weight, 0)) >> 32
    cumulative = tl.cumsum(weight, 0)
    hit = (cumulative > point) & (cumulative - weight <= point)
    return tl.sum(tl.where(hit, index, 0), 0)


@triton.jit
def _philox_word(position, L, example_ids, rng):
    b, t = position // L, position % L
    zero = (position * 0).to(tl.uint32)
    example, epoch = tl.load(example_ids + b).to(tl.uint32), tl.load(rng + 1).to(tl.uint32)
    w0, _, _, _ = tl.philox(tl.load(rng), t.to(tl.uint32), example, epoch, zero + _SUBSTITUTION)
    return w0.to(tl.uint32).to(tl.int64)


@triton.jit
def _write_token(
    m, value, index, positions, example_ids, rng, tokens, input_ids, BL, L, draw_scale,
    TOP_K: tl.constexpr,
):  # fmt: skip
    """Writes the token of row m: one of the candidates, or the original token if there are none."""
    position = tl.load(positions + m)
    written = (position >= 0) & (position < BL)
    place = tl.where(written, position, 0)
    token = tl.load(input_ids + place, mask=written, other=-1)
    if TOP_K == 1:
        chosen = tl.max(index, 0)
    else:
        chosen = _draw(value, index, _philox_word(place, L, example_ids, rng), draw_scale)
    found = tl.max(value, 0) > -float("inf")
    token = tl.where(written & found, chosen.to(tl.int64), token)
    tl.store(tokens + m, token)
    tl.store(input_ids + place, token, mask=written)


@triton.jit
def _gradient(x, v, start, end, target, shift, total, scale):
    """(p - onehot) * scale for the logits x of the ids v, which are in [start, end)."""
    e = _exp(x - shift)
    if (target >= start) & (target < end):
        e = tl.where(v == target, e - total, e)
    return e * scale


@triton.jit
def _second_sweep(
    row, bias, whole, target, shift, total, scale, W: tl.constexpr, LANES: tl.constexpr
):
    """Overwrites the logits by their gradient, which is 0 for an ignored row."""
    place = tl.arange(0, LANES)[:, None] * W + tl.arange(0, W)[None, :]
    for start in range(0, whole, LANES * W):
        v = start + place
        g = tl.zeros((LANES, W), tl.float32)
        if target != _IGNORE_INDEX:
            x = _load(row, bias, v, v < whole)
            g = _gradient(x, v, start, start + LANES * W, target, shift, total, scale)
        tl.store(row + v, g.to(row.dtype.element_ty), mask=v < whole)


# Triton compiles other variants for integers that are 1 or multiples of 16 and aligned pointers.
# These arguments change from batch to batch or from chunk to chunk, so it must not look at them. No
# vector is loaded through them.
_ANY = "positions targets example_ids rng losses tokens input_ids lse V end BL L N".split()


@triton.jit(do_not_specialize=_ANY)
def substitute_rows(
    logits, bias, positions, targets, example_ids, rng, banned, losses, tokens, input_ids, lse,
    V, end, row_stride, BL, L, N, draw_scale, gradient_scale,
    TOP_K: tl.constexpr, K: tl.constexpr, W: tl.constexpr, LANES: tl.constexpr,
    TILES: tl.constexpr, BANNED: tl.constexpr, LIST: tl.constexpr, GRADIENT: tl.constexpr,
):  # fmt: skip
    m = tl.program_id(0).to(tl.int64)
    row = logits + m * row_stride
    target = tl.load(targets + m)
    known = (target >= 0) & (target < V)
    target = tl.where(known | (target == _IGNORE_INDEX), target, -1).to(tl.int32)
    x_target = _load(row, bias, target, known)
    # With a mask that ends at a multiple of 16, the accesses stay vectors of 16 bytes.
    whole = V // _TAIL * _TAIL
    v_tail = whole + tl.arange(0, _TAIL)
    tail = _load(row, bias, v_tail, v_tail < V)
    top, total, value, tile = _first_sweep(row, bias, banned, whole, end, W, LANES, BANNED)
    shift = tl.maximum(tl.max(top, 0), tl.max(tail, 0))
    total = tl.sum(total * _exp_of_difference(top, shift), 0) + tl.sum(_exp(tail - shift), 0)
    broken = (total != total) | (shift == float("inf"))
    log_total = tl.log(total)
    nan = float("nan")
    loss = tl.where(broken | (known == 0), nan, log_total - (x_target - shift))
    tl.store(losses + m, tl.where(target == _IGNORE_INDEX, 0.0, loss))
    tl.store(lse + m, tl.where(broken, nan, log_total + shift))

    allowed = tl.where(v_tail < end, tail, -float("inf"))
    if BANNED == "mask":
        allowed = _without_banned(allowed, banned, v_tail, v_tail < V)
    best = tl.maximum(tl.max(value, 0), tl.max(allowed, 0))
    best = tl.where(broken, -float("inf"), best)
    candidates, ids = _choose(
        row, bias, banned, N, whole, end, value, tile, allowed, best,
        W, LANES, TILES, BANNED, LIST, TOP_K, K,
    )  # fmt: skip
    _write_token(
        m, candidates, ids, positions, example_ids, rng, tokens, input_ids, BL, L, draw_scale, TOP_K
    )
    if GRADIENT:
        tl.debug_barrier()  # until every thread has read what it needs of the row
        scale = tl.where(broken | (known == 0), nan, gradient_scale / total)
        _second_sweep(row, bias, whole, target, shift, total, scale, W, LANES)
        g = _gradient(tail, v_tail, whole, V, target, shift, total, scale)
        g = tl.where(target == _IGNORE_INDEX, 0.0, g)
        tl.store(row + v_tail, g.to(row.dtype.element_ty), mask=v_tail < V)
