"""The dropout op against its definition in NumPy and, for what it leaves to it, PyTorch's."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch.utils.checkpoint import checkpoint

from masktuning.ops import backends
from masktuning.ops.backends import extension
from masktuning.ops.dropout import KERNELS, _cpp, dropout

LOW = np.uint64(0xFFFFFFFF)
SEEDS = (0, 1, 0x123456789ABCDEF0, 2**63 - 1, -1)


def philox(counter, key):
    """Philox4x32-10 on arrays of 32-bit words, held in 64 bits."""
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(10):
        product0, product1 = c0 * np.uint64(0xD2511F53), c2 * np.uint64(0xCD9E8D57)
        c0, c2 = (product1 >> np.uint64(32)) ^ c1 ^ k0, (product0 >> np.uint64(32)) ^ c3 ^ k1
        c1, c3 = product1 & LOW, product0 & LOW
        k0, k1 = (k0 + np.uint64(0x9E3779B9)) & LOW, (k1 + np.uint64(0xBB67AE85)) & LOW
    return np.stack([c0, c1, c2, c3])


def kept(size, seed, p):
    """Which elements the definition in csrc/dropout.h keeps."""
    i = np.arange(size, dtype=np.uint64)
    counter = np.uint64(8) * (i // np.uint64(32)) + i % np.uint64(8)
    zero = np.zeros_like(i)
    seed = np.uint64(seed % 2**64)
    words = philox(
        (counter & LOW, counter >> np.uint64(32), zero, zero + np.uint64(4)),
        (seed & LOW, seed >> np.uint64(32)),
    )
    word = words[(i % np.uint64(32)) // np.uint64(8), np.arange(size)]
    return torch.from_numpy(word >= np.uint64(round(p * 2**32)))


def drop(x, seed, p):
    """The kernel with a given seed."""
    return _cpp(x, torch.tensor(seed, dtype=torch.int64), p)


def test_the_oracle_has_the_known_answer():
    """Of Random123, for the counter and key zero."""
    words = philox([np.zeros(1, np.uint64)] * 4, [np.uint64(0)] * 2)
    assert [int(word) for word in words[:, 0]] == [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]


@pytest.mark.parametrize("size", [1, 3, 8, 31, 32, 33, 1000, 1024, 1025, 70001])
@pytest.mark.parametrize("p", [0.1, 0.5, 0.999])
def test_matches_the_definition(size, p):
    x = torch.randn(size)
    for seed in SEEDS:
        expected = torch.where(kept(size, seed, p), x * (1 / (1 - p)), 0.0)
        assert torch.equal(drop(x, seed, p), expected)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_16_bits_are_rounded_once(dtype):
    x = torch.randn(4097).to(dtype)
    expected = torch.where(kept(4097, 7, 0.1), x.float() * (1 / 0.9), 0.0).to(dtype)
    assert torch.equal(drop(x, 7, 0.1), expected)


def test_a_tensor_that_is_not_contiguous_is_read_in_its_logical_order():
    x = torch.randn(37, 50)
    for view in (x.t(), x[:, ::3], x[3:, 1:], x[:1].expand(20, 50)):
        found = drop(view, 5, 0.3)
        assert found.shape == view.shape
        assert torch.equal(found, drop(view.contiguous(), 5, 0.3))


def test_any_number_of_threads_gives_the_same_bits(monkeypatch):
    x, found = torch.randn(300_001), []
    for threads in (1, 2, 3):
        monkeypatch.setattr(torch, "get_num_threads", lambda threads=threads: threads)
        found.append(drop(x, 11, 0.2))
    assert torch.equal(found[0], found[1]) and torch.equal(found[0], found[2])


@pytest.mark.parametrize("p", [0.01, 0.1, 0.5, 0.9])
def test_the_keep_rate_and_the_mean(p):
    size = 1_000_000
    torch.manual_seed(3)
    found = dropout(torch.ones(size), p)
    sigma = (p * (1 - p) / size) ** 0.5
    assert abs(float((found != 0).double().mean()) - (1 - p)) < 5 * sigma
    assert abs(float(found.double().mean()) - 1) < 5 * sigma / (1 - p)
    neighbours = ((found[1:] != 0) & (found[:-1] != 0)).double().mean()
    square = (1 - p) ** 2
    assert abs(float(neighbours) - square) < 10 * (square * (1 - square) / size) ** 0.5


def test_probabilities_at_and_beyond_the_ends():
    x = torch.randn(100)
    assert dropout(x, 0) is x and dropout(x, 0.0) is x
    assert dropout(x[:0], 0.5).shape == (0,)
    for p in (1, 1.0):
        assert torch.equal(dropout(x, p), torch.zeros(100))
    for p in (-0.1, 1.1, float("nan")):
        with pytest.raises(ValueError, match=r"p must be in \[0, 1\], not"):
            dropout(x, p)
        with pytest.raises(ValueError, match=r"p must be in \[0, 1\], not"):
            drop(x, 0, p)


def test_a_nan_stays():
    x = torch.full((1000,), torch.nan)
    assert dropout(x, 0.5).isnan().all() and F.dropout(x, 0.5).isnan().all()


def test_the_generator_of_pytorch_decides():
    x = torch.randn(1000)
    torch.manual_seed(1)
    first, second = dropout(x, 0.3), dropout(x, 0.3)
    assert not torch.equal(first, second)
    torch.manual_seed(1)
    assert torch.equal(dropout(x, 0.3), first)
    state = torch.get_rng_state()
    third = dropout(x, 0.3)
    torch.set_rng_state(state)
    assert torch.equal(dropout(x, 0.3), third)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_backward_pass_has_the_mask_of_the_forward_pass(dtype):
    x = torch.rand(33, 65).add(1).to(dtype).requires_grad_()
    out = dropout(x, 0.25)
    out.backward(torch.ones_like(out))
    mask = out != 0
    expected = (mask * torch.tensor(1 / 0.75)).to(dtype)
    assert 0 < mask.sum() < mask.numel()
    assert torch.equal(x.grad, expected)


def test_the_gradient_of_the_gradient():
    x = torch.rand(200).add(1).requires_grad_()
    out = dropout(x, 0.5)
    (gradient,) = torch.autograd.grad((out**2).sum(), x, create_graph=True)
    (second,) = torch.autograd.grad(gradient.sum(), x)
    assert torch.equal(gradient, 8 * x * (out != 0)) and torch.equal(second, 8.0 * (out != 0))


def test_activation_checkpointing_repeats_the_mask():
    weight = torch.randn(64, 64)
    gradients = []
    for recompute in (False, True):
        torch.manual_seed(2)
        x = torch.ones(50, 64, requires_grad=True)

        def block(x):
            return dropout(torch.tanh(dropout(x, 0.4) @ weight), 0.2)

        out = checkpoint(block, x, use_reentrant=False) if recompute else block(x)
        out.square().sum().backward()
        gradients.append(x.grad)
    assert torch.equal(*gradients)


def test_what_has_no_kernel_is_pytorch_s_own():
    x = torch.randn(1000)
    for tensor, name in ((x, "reference"), (x.double(), "cpp"), (x.double(), "auto")):
        with backends.use(name):
            torch.manual_seed(4)
            expected = F.dropout(tensor, 0.3)
            torch.manual_seed(4)
            assert torch.equal(dropout(tensor, 0.3), expected)
    meta = dropout(x.to("meta"), 0.3)
    assert meta.device.type == "meta" and meta.shape == x.shape


def test_a_gpu_has_no_kernel_and_there_is_no_warning():
    assert set(KERNELS) == {"cpp"}
    assert backends.choose("dropout", torch.device("cuda", 0)) == "reference"


def test_torch_compile_sees_pytorch_s_own():
    x = torch.randn(1000)
    compiled = torch.compile(lambda x: dropout(x, 0.3), fullgraph=True, backend="eager")
    torch.manual_seed(4)
    expected = F.dropout(x, 0.3)
    torch.manual_seed(4)
    assert torch.equal(compiled(x), expected)
    torch._dynamo.reset()


def test_no_tensor_is_asked_for_its_value(monkeypatch):
    def asked(*arguments):
        raise AssertionError("a value was asked for")

    for name in ("item", "tolist", "cpu", "numpy", "__array__", "__int__", "__bool__"):
        monkeypatch.setattr(torch.Tensor, name, asked)
    x = torch.ones(100, requires_grad=True)
    dropout(x, 0.5).sum().backward()


def test_an_unknown_dtype_is_refused():
    x, seed = torch.ones(4), torch.zeros((), dtype=torch.int64)
    addresses = [tensor.data_ptr() for tensor in (x, seed)]
    with pytest.raises(ValueError, match="dtype must be"):
        extension.module().dropout(addresses[0], 3, 4, addresses[1], 0.5, addresses[0], 1)
