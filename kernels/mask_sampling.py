"""sample_masks and sample_masks_threshold in Triton: one program per row.

Shapes: B examples, L tokens, M masked positions, N replacement ids.
"""

import triton
import triton.language as tl

# Streams of the counter contract, and the bounds of 80/10/10 as 32-bit numbers.
_MASKING: tl.constexpr = tl.constexpr(0)
_CORRUPTION: tl.constexpr = tl.constexpr(2)
_SHOW_MASK_BELOW: tl.constexpr = tl.constexpr(3435973837)
_SHOW_RANDOM_BELOW: tl.constexpr = tl.constexpr(3865470566)
_IGNORE_INDEX: tl.constexpr = tl.constexpr(-100)


@triton.jit
def token_words(seed, epoch, example_id, t, stream: tl.constexpr):
    """Words 0 and 1 of Philox4x32-10 at counter (t, example_id, epoch, stream), in int64."""
    zero = (t * 0).to(tl.uint32)
    example = zero + example_id.to(tl.uint32)
    w0, w1, _, _ = tl.philox(
        seed, t.to(tl.uint32), example, zero + epoch.to(tl.uint32), zero + stream
    )
    return w0.to(tl.uint32).to(tl.int64), w1.to(tl.uint32).to(tl.int64)


@triton.jit
def _ignore(positions, targets, begin, end, BLOCK: tl.constexpr):
    """Marks the slots as surplus: they count for nothing."""
    for start in range(begin, end, BLOCK):
        slots = start + tl.arange(0, BLOCK)
        tl.store(positions + slots, -1, mask=slots < end)
        tl.store(targets + slots, _IGNORE_INDEX, mask=slots < end)


@triton.jit
def _choose(can, draw, wanted):
    """The tokens with the smallest draws among those that can be masked; of ties the first ones."""
    # The wanted-th smallest draw is the largest number with fewer than `wanted` draws below it.
    # Its bits are found from the highest to the lowest.
    last = wanted * 0
    for step in range(32):
        higher = last | (wanted * 0 + 1 << 31 - step)
        below = tl.sum((can & (draw < higher)).to(tl.int64), 0)
        last = tl.where(below < wanted, higher, last)
    smaller = can & (draw < last)
    same = (can & (draw == last)).to(tl.int64)
    ties = wanted - tl.sum(smaller.to(tl.int64), 0)
    return smaller | ((same != 0) & (tl.cumsum(same, 0) - same < ties))


@triton.jit
def _write(
    input_ids,
    replacement_ids,
    masked_ids,
    positions,
    targets,
    start,  # of the row in the flattened batch
    L,
    N,
    M,
    mask_token_id,
    seed,
    epoch,
    example_id,
    chosen,
    begin,  # the slot of the row's first masked token
    BLOCK: tl.constexpr,
    CORRUPT: tl.constexpr,
):
    """Writes the masked row, and the positions and originals of the chosen tokens."""
    t = tl.arange(0, BLOCK)
    flat = start + t
    original = tl.load(input_ids + flat, mask=t < L, other=0)
    shown = original * 0 + mask_token_id
    if CORRUPT:
        kind, which = token_words(seed, epoch, example_id, t, _CORRUPTION)
        random = tl.load(replacement_ids + ((which * N) >> 32), mask=chosen, other=0)
        kept = tl.where(kind < _SHOW_RANDOM_BELOW, random, original)
        shown = tl.where(kind < _SHOW_MASK_BELOW, shown, kept)
    tl.store(masked_ids + flat, tl.where(chosen, shown, original), mask=t < L)
    slots = begin + tl.cumsum(chosen.to(tl.int64), 0) - 1
    fits = chosen & (slots >= 0) & (slots < M)
    tl.store(positions + slots, flat, mask=fits)
    tl.store(targets + slots, original, mask=fits)


@triton.jit
def _below_threshold(thresholds, seed, epoch, example_id, start, L, BLOCK: tl.constexpr):
    """Which tokens of a row have a draw below their threshold."""
    t = tl.arange(0, BLOCK)
    draw, _ = token_words(seed, epoch, example_id, t, _MASKING)
    return draw < tl.load(thresholds + start + t, mask=t < L, other=0)


# Triton compiles other variants for integers that are 1 or multiples of 16 and aligned pointers.
# These arguments change from batch to batch, so it must not look at them.
_ANY = """input_ids maskable example_ids offsets rng replacement_ids masked_ids positions targets
B L N M mask_token_id""".split()
_ANY_COUNTED = "thresholds example_ids rng counts B L".split()
_ANY_THRESHOLD = """input_ids thresholds example_ids offsets rng replacement_ids masked_ids
positions targets B L N M mask_token_id""".split()


@triton.jit(do_not_specialize=_ANY)
def sample_masks(
    input_ids,
    maskable,
    example_ids,
    offsets,
    rng,
    replacement_ids,
    masked_ids,
    positions,
    targets,
    B,
    L,
    N,
    M,
    mask_token_id,
    BLOCK: tl.constexpr,  # a power of two, L or more
    CORRUPT: tl.constexpr,
):
    b = tl.program_id(0).to(tl.int64)
    if b == 0:
        _ignore(positions, targets, tl.load(offsets + B), M, BLOCK)
    if b < B:  # an empty batch still has one program
        t = tl.arange(0, BLOCK)
        flat = b * L + t
        can = (t < L) & (tl.load(maskable + flat, mask=t < L, other=0) != 0)
        seed, epoch = tl.load(rng), tl.load(rng + 1)
        example_id = tl.load(example_ids + b)
        draw, _ = token_words(seed, epoch, example_id, t, _MASKING)
        begin, end = tl.load(offsets + b), tl.load(offsets + b + 1)
        wanted = tl.minimum(end - begin, tl.sum(can.to(tl.int64), 0))

        chosen = _choose(can, draw, wanted)
        _write(
            input_ids, replacement_ids, masked_ids, positions, targets, b * L, L, N, M,
            mask_token_id, seed, epoch, example_id, chosen, begin, BLOCK, CORRUPT,
        )  # fmt: skip
        # Offsets that ask for more tokens than the row can mask leave surplus slots.
        _ignore(positions, targets, begin + wanted, tl.minimum(end, M), BLOCK)


@triton.jit(do_not_specialize=_ANY_COUNTED)
def count_below_threshold(thresholds, example_ids, rng, counts, B, L, BLOCK: tl.constexpr):
    b = tl.program_id(0).to(tl.int64)
    if b < B:
        seed, epoch = tl.load(rng), tl.load(rng + 1)
        example_id = tl.load(example_ids + b)
        chosen = _below_threshold(thresholds, seed, epoch, example_id, b * L, L, BLOCK)
        tl.store(counts + b, tl.sum(chosen.to(tl.int64), 0))


@triton.jit(do_not_specialize=_ANY_THRESHOLD)
def sample_masks_threshold(
    input_ids,
    thresholds,
    example_ids,
    offsets,
    rng,
    replacement_ids,
    masked_ids,
    positions,
    targets,
    B,
    L,
    N,
    M,
    mask_token_id,
    BLOCK: tl.constexpr,
    CORRUPT: tl.constexpr,
):
    b = tl.program_id(0).to(tl.int64)
    if b < B:
        seed, epoch = tl.load(rng), tl.load(rng + 1)
        example_id = tl.load(example_ids + b)
        chosen = _below_threshold(thresholds, seed, epoch, example_id, b * L, L, BLOCK)
        _write(
            input_ids, replacement_ids, masked_ids, positions, targets, b * L, L, N, M,
            mask_token_id, seed, epoch, example_id, chosen, tl.load(offsets + b), BLOCK, CORRUPT,
        )  # fmt: skip
