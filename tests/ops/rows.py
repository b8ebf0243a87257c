"""Rows of logits for the row kernels, and the equations in float64.

Shapes: B examples, L tokens, M masked positions, V vocabulary.
"""

import numpy as np
import torch

from masktuning.ops import backends, substitute_tokens
from masktuning.ops.masked_lm_head_fused import gradient_scale
from masktuning.ops.masked_rows import MaskedRows, TokenChoice
from masktuning.ops.token_substitution_kernels import KERNELS

DTYPES = [torch.float32, torch.bfloat16, torch.float16]


def row_kernel(name):
    """The row kernel of a back end, with the arguments of substitute_tokens one by one."""

    def kernel(
        logits, banned_ids, top_k, temperature, gradient_scale, bias=None, tokenizer_size=None,
        **rows,
    ):  # fmt: skip
        choice = TokenChoice(banned_ids, top_k, temperature, tokenizer_size)
        return KERNELS[name](logits, bias, MaskedRows(**rows), choice, gradient_scale)

    return kernel


def rows_for(M, V, seed=0, L=16, device="cpu"):
    """Arguments for M rows of V logits; of 4 or more, the last is surplus and the first ignored."""
    generator = torch.Generator().manual_seed(seed)
    B = max(1, -(-M // L))
    input_ids = torch.randint(0, V, (B, L), generator=generator)
    positions = torch.arange(M)
    targets = input_ids.flatten()[:M].clone()
    if M >= 4:
        targets[0] = targets[-1] = -100
        positions[-1] = -1
    rows = {
        "input_ids": input_ids,
        "positions": positions,
        "targets": targets,
        "example_ids": torch.randint(0, 2**32, (B,), generator=generator),
        "rng": torch.tensor([seed - 3, 5]),
    }
    return {name: tensor.to(device) for name, tensor in rows.items()}


def make_logits(M, V, dtype, seed=0, offset=0.0, aligned=True, device="cpu"):
    """[M, V] with a padded row stride; misaligned by one element if not `aligned`.

    They are made on the CPU and copied to a GPU in one piece. For initcheck of compute-sanitizer,
    memory is initialised if the host copied to it or an instrumented kernel wrote it. Kernels of
    torch are not instrumented, so what they write would count as uninitialised.
    """
    generator = torch.Generator().manual_seed(seed)
    stride = -(-V // 64) * 64 if aligned else V
    shift = 0 if aligned else 1
    storage = torch.zeros(M * stride + shift, dtype=dtype)
    place = slice(shift, shift + M * stride)
    values = 3 * torch.randn(M, V, generator=generator) + offset
    storage[place].view(M, stride)[:, :V] = values.to(dtype)
    return storage.to(device)[place].view(M, stride)[:, :V]


def float64_losses(logits, targets):
    """log(sum of e^(x - m)) - (x_y - m), 0 for ignored rows."""
    x = logits.double()
    m = x.amax(1, keepdim=True)
    x_target = x.gather(1, targets.clamp(min=0)[:, None])
    losses = (x - m).exp().sum(1).log() - (x_target - m)[:, 0]
    return losses.masked_fill(targets == -100, 0.0).cpu().numpy()


def float64_gradient(logits, targets):
    """p - onehot, 0 for ignored rows."""
    x = logits.double()
    p = (x - x.amax(1, keepdim=True)).exp()
    p /= p.sum(1, keepdim=True)
    p.scatter_add_(1, targets.clamp(min=0)[:, None], torch.full_like(p[:, :1], -1.0))
    return p.masked_fill(targets[:, None] == -100, 0.0)


def check_kernel(
    kernel,
    M,
    V,
    dtype,
    top_k,
    seed=0,
    offset=0.0,
    aligned=True,
    banned=None,
    tokenizer_size=None,
    device="cpu",
):
    """Compares a row kernel with float64, and its tokens with the reference."""
    banned = None if banned is None else banned.to(device)
    rows = {**rows_for(M, V, seed, device=device), "banned_ids": banned, "top_k": top_k}
    rows["tokenizer_size"] = tokenizer_size
    logits = make_logits(M, V, dtype, seed, offset, aligned, device)
    before = logits.clone()
    with backends.use("reference"):
        reference = substitute_tokens(logits, **rows)
    expected = float64_losses(logits, rows["targets"])
    scale = gradient_scale(dtype)
    results = []
    for stored in (0.0, scale):
        losses, tokens, filled, _ = kernel(logits, **rows, temperature=1.0, gradient_scale=stored)
        assert torch.equal(tokens, reference.tokens)
        assert torch.equal(filled, reference.input_ids)
        np.testing.assert_allclose(losses.cpu().numpy(), expected, rtol=1e-5, atol=1e-6)
        assert stored or torch.equal(logits, before)
        results.append(losses)
    torch.testing.assert_close(*results, rtol=1e-6, atol=0)
    gradient = float64_gradient(before, rows["targets"])
    if dtype == torch.float32:
        torch.testing.assert_close(logits.double(), gradient, rtol=1e-5, atol=1e-6)
    elif M:
        rounded = (gradient * scale).to(dtype).double()
        error = (logits.double() - rounded).norm() / rounded.norm().clamp(min=1e-9)
        assert float(error) < 1e-3
