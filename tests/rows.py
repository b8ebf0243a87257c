"""Rows of logits for the row kernels, and the equations in float64.

Shapes: B examples, L tokens, M masked positions, V vocabulary.
"""

import numpy as np
import torch

from masktuning.ops import backend, substitute_tokens
from masktuning.ops.masked_lm_head import gradient_scale

DTYPES = [torch.float32, torch.bfloat16, torch.float16]


def rows_for(M, V, seed=0, L=16, device="cpu"):
    """Arguments for M rows of V logits; the last row is surplus, the first ignored, from 4 on."""
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
    """[M, V] with a padded row stride; misaligned by one element if not `aligned`."""
    generator = torch.Generator().manual_seed(seed)
    stride = -(-V // 64) * 64 if aligned else V
    shift = 0 if aligned else 1
    storage = torch.zeros(M * stride + shift, dtype=dtype, device=device)
    logits = storage[shift : shift + M * stride].view(M, stride)[:, :V]
    logits.copy_(3 * torch.randn(M, V, generator=generator) + offset)
    return logits


def float64_losses(logits, targets):
    x, targets = logits.double().cpu().numpy(), targets.cpu()
    m = x.max(1, keepdims=True)
    losses = np.log(np.exp(x - m).sum(1)) - (x[np.arange(len(x)), targets.clamp(min=0)] - m[:, 0])
    return np.where(targets.numpy() == -100, 0.0, losses)


def float64_gradient(logits, targets):
    """p - onehot, 0 for ignored rows."""
    x, targets = logits.double().cpu().numpy(), targets.cpu()
    p = np.exp(x - x.max(1, keepdims=True))
    p /= p.sum(1, keepdims=True)
    p[np.arange(len(x)), targets.clamp(min=0)] -= 1.0
    p[targets.numpy() == -100] = 0.0
    return p


def check_kernel(
    kernel, M, V, dtype, top_k, seed=0, offset=0.0, aligned=True, banned=None, device="cpu"
):
    """A back end's substitute_tokens against float64, and its tokens against the reference."""
    banned = None if banned is None else banned.to(device)
    rows = {**rows_for(M, V, seed, device=device), "banned_ids": banned, "top_k": top_k}
    logits = make_logits(M, V, dtype, seed, offset, aligned, device)
    before = logits.clone()
    with backend.use("reference"):
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
    assert torch.equal(*results)
    gradient = float64_gradient(before, rows["targets"])
    if dtype == torch.float32:
        np.testing.assert_allclose(logits.cpu().numpy(), gradient, rtol=1e-5, atol=1e-6)
    elif M:
        rounded = torch.from_numpy(gradient * scale).to(dtype).double()
        error = (logits.cpu().double() - rounded).norm() / rounded.norm().clamp(min=1e-9)
        assert float(error) < 1e-3
