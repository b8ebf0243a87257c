"""substitute_tokens and masked_lm_head against sums in float64.

Shapes: B examples, L tokens, M masked positions, H width, V vocabulary.
"""

import math

import masktuning_C
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from masktuning.ops import (
    backends,
    masked_lm_head,
    masked_lm_head_from_logits,
    substitute_tokens,
)

B, L = 3, 10
SEED, EPOCH = 12345678901, 2


@pytest.fixture(autouse=True, scope="module", params=["reference", "cpp"])
def _back_end(request):
    """Runs every test on both back ends; `auto` would leave the reference untested."""
    with backends.use(request.param):
        yield


def rows_for(M, V, seed):
    generator = torch.Generator().manual_seed(seed)
    positions = torch.randperm(B * L, generator=generator)[:M].sort().values
    input_ids = torch.randint(0, V, (B, L), generator=generator)
    return {
        "input_ids": input_ids,
        "positions": positions,
        "targets": input_ids.flatten()[positions],
        "example_ids": torch.tensor([70, 71, 2**31]),
        "rng": torch.tensor([SEED, EPOCH]),
    }


def expected_loss(row, target):
    """-log softmax in float64, shifted by the maximum."""
    x = row.astype(np.float64)
    m = x.max()
    return math.log(np.exp(x - m).sum()) - (x[target] - m)


@settings(max_examples=40, deadline=None)
@given(
    M=st.integers(0, 12),
    V=st.sampled_from([1, 7, 257]),
    seed=st.integers(0, 10**6),
    dtype=st.sampled_from([torch.float32, torch.bfloat16, torch.float16, torch.float64]),
    offset=st.sampled_from([0.0, 1e4, -1e4]),
)
def test_losses_and_argmax(M, V, seed, dtype, offset):
    rows = rows_for(M, V, seed)
    generator = torch.Generator().manual_seed(seed)
    logits = (3 * torch.randn(M, V, generator=generator) + offset).to(dtype)
    result = substitute_tokens(logits, **rows)
    for j in range(M):
        row = logits[j].double().numpy()
        expected = expected_loss(row, int(rows["targets"][j]))
        assert float(result.losses[j]) == pytest.approx(expected, rel=1e-5, abs=1e-6)
        assert int(result.tokens[j]) == int(np.flatnonzero(row == row.max())[0])
    expected_ids = rows["input_ids"].clone().flatten()
    expected_ids[rows["positions"]] = result.tokens
    assert torch.equal(result.input_ids, expected_ids.view(B, L))


def test_surplus_and_ignored_rows():
    rows = rows_for(4, 7, 0)
    rows["positions"][3], rows["targets"][3] = -1, -100  # surplus
    rows["targets"][1] = -100  # ignored, but its token is substituted
    logits = torch.randn(4, 7, requires_grad=True)
    result = masked_lm_head_from_logits(logits, **rows)
    assert result.losses[1] == 0 and result.losses[3] == 0 and result.tokens[3] == -1
    changed = (result.input_ids != rows["input_ids"]).flatten().nonzero().flatten().tolist()
    assert set(changed) <= set(rows["positions"][:3].tolist())
    assert result.tokens[1] == logits[1].argmax()
    result.losses.sum().backward()
    assert logits.grad[[1, 3]].abs().max() == 0 and logits.grad[[0, 2]].abs().min() > 0


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_broken_row_shows_and_keeps_its_token(bad):
    rows = rows_for(3, 7, 1)
    logits = torch.randn(3, 7)
    logits[1, 2] = bad
    for top_k in (1, 3):
        result = substitute_tokens(logits, **rows, top_k=top_k)
        assert result.losses.isnan().tolist() == [False, True, False]
        assert result.tokens[1] == rows["targets"][1]
    logits.requires_grad_()
    masked_lm_head_from_logits(logits, **rows).losses.sum().backward()
    assert logits.grad[1].isnan().any() and logits.grad[[0, 2]].isfinite().all()


def test_minus_infinity_is_ordinary():
    rows = rows_for(1, 7, 2)
    rows["targets"][0] = 3
    logits = torch.full((1, 7), -torch.inf)
    logits[0, 3:5] = torch.tensor([0.5, 0.25])
    result = substitute_tokens(logits, **rows, top_k=7)
    assert float(result.losses[0]) == pytest.approx(math.log(1 + math.exp(-0.25)), rel=1e-6)
    assert int(result.tokens[0]) in (3, 4)


def test_banned_ids_stay_in_the_loss():
    rows = rows_for(2, 7, 3)
    logits = torch.zeros(2, 7)
    logits[:, 5], logits[:, 6] = 9.0, 8.0
    result = substitute_tokens(logits, **rows, banned_ids=torch.tensor([5]))
    assert result.tokens.tolist() == [6, 6]
    target = int(rows["targets"][0])
    expected = expected_loss(logits[0].numpy(), target)
    assert float(result.losses[0]) == pytest.approx(expected, rel=1e-5, abs=1e-6)
    everything = substitute_tokens(logits, **rows, banned_ids=torch.arange(7))
    assert torch.equal(everything.tokens, rows["targets"])


@pytest.mark.parametrize("top_k", [1, 4])
def test_tokenizer_size_bans_every_id_from_there_on(top_k):
    rows = rows_for(2, 7, 3)
    logits = torch.tensor([[0.0, 1, 2, 3, 9, 8, 7]]).repeat(2, 1)
    shorter = substitute_tokens(logits, **rows, top_k=top_k, tokenizer_size=4)
    listed = substitute_tokens(logits, **rows, top_k=top_k, banned_ids=torch.tensor([4, 5, 6]))
    assert torch.equal(shorter.tokens, listed.tokens) and bool((shorter.tokens < 4).all())
    target = int(rows["targets"][0])
    assert float(shorter.losses[0]) == pytest.approx(expected_loss(logits[0].numpy(), target))
    more = substitute_tokens(logits, **rows, tokenizer_size=100)
    assert more.tokens.tolist() == [4, 4]


def expected_draw(row, k, temperature, position):
    """The draw by weights floor(2^24 * exp((x - max) / temperature)); None if it is too close."""
    order = np.lexsort((np.arange(len(row)), -row))[:k]
    y = (row[order].astype(np.float64) - row[order[0]]) / temperature
    weights = np.floor(2.0**24 * np.exp(y))
    b, t = divmod(position, L)
    example = (70, 71, 2**31)[b]
    key = (SEED & 0xFFFFFFFF, SEED >> 32)
    word = masktuning_C.philox4x32_10(t, example, EPOCH, 1, *key)[0]
    edges = np.cumsum(weights) / weights.sum()
    share = word / 2**32
    # So near an edge that rounding decides, float64 cannot tell.
    if np.abs(edges - share).min() < 1e-6:
        return None
    return int(order[int((edges <= share).sum())])


@pytest.mark.parametrize(("k", "temperature"), [(2, 1.0), (8, 1.0), (8, 0.5), (64, 3.0)])
def test_draw_among_the_top_k(k, temperature):
    rows = rows_for(B * L, 257, 4)
    logits = 2 * torch.randn(B * L, 257, generator=torch.Generator().manual_seed(5))
    logits[:, 100] = logits[:, 200] = logits.amax(1)  # ties go to the lower id
    tokens = substitute_tokens(logits, **rows, top_k=k, temperature=temperature).tokens
    checked = 0
    for j, position in enumerate(rows["positions"].tolist()):
        expected = expected_draw(logits[j].numpy(), k, temperature, position)
        if expected is not None:
            assert int(tokens[j]) == expected
            checked += 1
    assert checked > B * L - 3


def test_draws_follow_the_softmax():
    """Chi-square test of 30,000 draws among the 5 largest logits of one row, p > 1e-4."""
    n, k = 30000, 5
    row = torch.tensor([1.0, 0.2, 3.0, -1.0, 2.5, 2.0, 0.0])
    tokens = substitute_tokens(
        row.expand(n, 7),
        input_ids=torch.zeros(n, 1, dtype=torch.int64),
        positions=torch.arange(n),
        targets=torch.zeros(n, dtype=torch.int64),
        example_ids=torch.arange(n),
        rng=torch.tensor([9, 0]),
        top_k=k,
    ).tokens
    top = row.double().numpy().argsort()[::-1][:k]
    weights = np.exp(row.double().numpy()[top])
    observed = np.bincount(tokens.numpy(), minlength=7)
    assert observed.sum() == observed[top].sum()
    assert stats.chisquare(observed[top], n * weights / weights.sum()).pvalue > 1e-4


def head_arguments(dtype=torch.float64, bias=True):
    M, H, V = 5, 6, 11
    generator = torch.Generator().manual_seed(6)
    hidden, weight, b = (
        torch.randn(shape, generator=generator, dtype=dtype, requires_grad=True)
        for shape in ((M, H), (V, H), (V,))
    )
    return (hidden, weight, b if bias else None), rows_for(M, V, 7)


@pytest.mark.parametrize("bias", [True, False])
def test_masked_lm_head_gradcheck(bias):
    operands, rows = head_arguments(bias=bias)
    rows["targets"][2] = -100
    operands = tuple(o for o in operands if o is not None)
    assert torch.autograd.gradcheck(
        lambda h, w, *b: masked_lm_head(h, w, *(b or (None,)), **rows).losses, operands
    )


def test_masked_lm_head_is_its_parts():
    (hidden, weight, bias), rows = head_arguments()
    logits = hidden.detach() @ weight.detach().T + bias.detach()
    with torch.no_grad():
        ours = masked_lm_head(hidden, weight, bias, **rows)
    parts = substitute_tokens(logits, **rows)
    for j in range(len(rows["targets"])):
        expected = expected_loss(logits[j].numpy(), int(rows["targets"][j]))
        assert float(ours.losses[j]) == pytest.approx(expected, rel=1e-12)
        assert int(ours.tokens[j]) == int(logits[j].argmax())
        assert float(parts.lse[j]) == pytest.approx(math.log(np.exp(logits[j].numpy()).sum()))


def test_masked_lm_head_under_autocast():
    (hidden, weight, bias), rows = head_arguments(torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        result = masked_lm_head(hidden, weight, bias, **rows)
    assert result.losses.dtype == torch.float32
    rounded = (hidden.bfloat16() @ weight.bfloat16().T + bias.bfloat16()).double().detach()
    expected = [
        expected_loss(row.numpy(), int(t)) for row, t in zip(rounded, rows["targets"], strict=True)
    ]
    np.testing.assert_allclose(result.losses.detach().numpy(), expected, rtol=2e-2)


def test_compiles_without_graph_breaks():
    operands, rows = head_arguments(torch.float32)
    compiled = torch.compile(masked_lm_head, fullgraph=True)(*operands, **rows)
    eager = masked_lm_head(*operands, **rows)
    torch.testing.assert_close(compiled.losses, eager.losses)
    assert torch.equal(compiled.input_ids, eager.input_ids)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"logits": torch.zeros(2, 0)}, "V > 0"),
        ({"logits": torch.zeros(2, 7, dtype=torch.int64)}, "logits must be float16 or"),
        ({"targets": torch.tensor([0, 7])}, "targets holds 7, outside the vocabulary of 7"),
        ({"targets": torch.tensor([0, -1])}, "targets holds -1"),
        ({"targets": torch.tensor([0])}, r"targets must have shape \[2\]"),
        ({"positions": torch.tensor([0, 4])}, "positions must be below"),
        ({"positions": torch.tensor([2, 0])}, "positions must ascend"),
        ({"positions": torch.tensor([2, 2])}, "positions must ascend"),
        ({"positions": torch.tensor([-1, 2])}, "positions must ascend"),
        ({"positions": torch.tensor([1, -2])}, "positions must ascend"),
        ({"tokenizer_size": 0}, "tokenizer_size must be at least 1"),
        ({"banned_ids": torch.tensor([3, 7])}, "banned_ids must lie in the vocabulary of 7"),
        ({"top_k": 0}, "top_k must be in 1..64"),
        ({"top_k": 65}, "top_k must be in 1..64"),
        ({"temperature": 0.0}, "temperature must be above 0"),
        ({"banned_ids": torch.zeros(2)}, "banned_ids must be int64"),
    ],
)
def test_bad_arguments_are_named(change, message):
    arguments = {
        "logits": torch.zeros(2, 7),
        "input_ids": torch.zeros(2, 2, dtype=torch.int64),
        "positions": torch.tensor([0, 2]),
        "targets": torch.tensor([0, 0]),
        "example_ids": torch.tensor([0, 1]),
        "rng": torch.tensor([0, 0]),
    }
    with pytest.raises(ValueError, match=message):
        substitute_tokens(**{**arguments, **change})


def test_head_shapes_are_checked():
    (hidden, weight, _), rows = head_arguments()
    with pytest.raises(ValueError, match=r"hidden must be \[M, H\] and weight \[V, H\]"):
        masked_lm_head(hidden[:, :3], weight, None, **rows)
    with pytest.raises(ValueError, match=r"bias must be \[V\]"):
        masked_lm_head(hidden, weight, weight[:3, 0], **rows)
