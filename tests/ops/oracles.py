"""The definitions, one token at a time, which every implementation is compared with."""

import masktuning_C

MASK = 4


def counts_of(maskable, rate, minimum=1):
    """k_i by the definition, in Python integers."""
    P = round(rate * 2**32)
    return [min(n, max(minimum, (n * P + 2**31) >> 32)) for n in maskable.sum(1).tolist()]


def expected_masks(input_ids, maskable, example_ids, counts, seed, epoch, replacements=None):
    """The masks by the counter contract, one token at a time, with the C++ Philox."""
    shown, positions, targets = input_ids.clone(), [], []
    key = (seed & 0xFFFFFFFF, (seed >> 32) & 0xFFFFFFFF)
    L = input_ids.shape[1]
    for b, k in enumerate(counts):
        example = int(example_ids[b]) & 0xFFFFFFFF
        draws = [
            (masktuning_C.philox4x32_10(t, example, epoch, 0, *key)[0], t)
            for t in range(L)
            if maskable[b, t]
        ]
        for t in sorted(t for _, t in sorted(draws)[:k]):
            original = int(input_ids[b, t])
            positions.append(b * L + t)
            targets.append(original)
            token = MASK
            if replacements is not None:
                w0, w1, _, _ = masktuning_C.philox4x32_10(t, example, epoch, 2, *key)
                if w0 >= round(0.9 * 2**32):
                    token = original
                elif w0 >= round(0.8 * 2**32):
                    token = int(replacements[(w1 * len(replacements)) >> 32])
            shown[b, t] = token
    return shown, positions, targets
