"""dual_cross_entropy in Triton, by one program. The order of every sum is fixed.

Shapes: B examples, C classes, M masked positions.
"""

import triton
import triton.language as tl

# Triton compiles other variants for integers that are 1 or multiples of 16 and aligned pointers.
# These arguments change from batch to batch, so it must not look at them.
_ANY = "losses logits labels denominators M B C ignore_index".split()


@triton.jit(do_not_specialize=_ANY)
def dual_cross_entropy(
    losses, logits, labels, denominators, terms, gradient, M, B, C, ignore_index, alpha,
    label_smoothing,
    ROWS: tl.constexpr,  # how many losses or examples are read at a time
    CLASSES: tl.constexpr,  # a power of two, C or more
):  # fmt: skip
    masked, counted = tl.load(denominators), tl.load(denominators + 1)
    mlm = tl.zeros((ROWS,), tl.float64)
    for start in range(0, M, ROWS):
        m = start + tl.arange(0, ROWS)
        mlm += tl.load(losses + m, mask=m < M, other=0.0)
    classification = tl.zeros((ROWS,), tl.float64)
    c = tl.arange(0, CLASSES)[None, :]
    row_scale = tl.where(counted > 0, 1.0 / tl.where(counted > 0, counted, 1.0), 0.0)
    for start in range(0, B, ROWS):
        b = start + tl.arange(0, ROWS)
        label = tl.load(labels + b, mask=b < B, other=ignore_index)
        known = (label >= 0) & (label < C)
        counts = (label != ignore_index) & (b < B)
        inside = (b < B)[:, None] & (c < C)
        place = b[:, None] * C + c
        x = tl.load(logits + place, mask=inside, other=-float("inf")).to(tl.float32)
        x = tl.where((b < B)[:, None], x, 0.0)  # so that the rows past the end have a finite sum
        d = x - tl.max(x, 1)[:, None]
        e = tl.exp(d)
        total = tl.sum(e, 1)
        log_total = tl.log(total)
        # The smoothed target is 1 - s on the label, plus s / C on every class.
        hit = c == label[:, None]
        of_label = log_total - tl.sum(tl.where(hit, d, 0.0), 1)
        of_all = log_total - tl.sum(tl.where(c < C, d, 0.0), 1) / C
        of_all = tl.where(label_smoothing > 0.0, of_all, 0.0)  # infinite if a logit is -inf
        loss = (1.0 - label_smoothing) * of_label + label_smoothing * of_all
        loss = tl.where(known, loss, float("nan"))  # a label outside the classes gives NaN
        classification += tl.where(counts, loss, 0.0)
        wanted = label_smoothing / C + tl.where(hit, 1.0 - label_smoothing, 0.0)
        g = (e / total[:, None] - wanted) * row_scale
        g = tl.where(known[:, None], g, float("nan"))
        tl.store(gradient + place, tl.where(counts[:, None], g, 0.0), mask=inside)
    mlm_sum, class_sum = tl.sum(mlm, 0), tl.sum(classification, 0)
    one = masked * 0.0 + 1.0  # a denominator of 0 gives 0, but a NaN sum gives NaN
    mlm_mean = tl.where(masked > 0, mlm_sum / tl.where(masked > 0, masked, one), mlm_sum * 0.0)
    class_mean = tl.where(
        counted > 0, class_sum / tl.where(counted > 0, counted, one), class_sum * 0.0
    )
    tl.store(terms, (alpha * mlm_mean + (1.0 - alpha) * class_mean).to(tl.float32))
    tl.store(terms + 1, mlm_mean.to(tl.float32))
    tl.store(terms + 2, class_mean.to(tl.float32))
    weight = tl.where(masked > 0, 1.0 / tl.where(masked > 0, masked, one), 0.0)  # d mlm / d losses
    tl.store(terms + 3, weight.to(tl.float32))
