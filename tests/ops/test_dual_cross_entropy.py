"""dual_cross_entropy against the equation in float64.

Shapes: B examples, C classes, M masked positions.
"""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx

from masktuning.ops import backends, dual_cross_entropy


@pytest.fixture(autouse=True, scope="module", params=["reference", "cpp"])
def _back_end(request):
    """Runs every test on both back ends; `auto` would leave the reference untested."""
    with backends.use(request.param):
        yield


def expected_terms(losses, logits, labels, denominators, smoothing):
    """The two terms by their definition: sums of row losses, divided by the denominators."""
    x = np.asarray(logits, dtype=np.float64)
    log_p = (
        x
        - np.log(np.exp(x - x.max(1, keepdims=True)).sum(1, keepdims=True))
        - x.max(1, keepdims=True)
    )
    rows = [
        -(1 - smoothing) * log_p[b, y] - smoothing * log_p[b].mean()
        for b, y in enumerate(labels)
        if y != -100
    ]
    mlm = np.sum(np.asarray(losses, dtype=np.float64)) / denominators[0]
    return mlm, np.sum(rows) / denominators[1]


@settings(max_examples=40, deadline=None)
@given(
    M=st.integers(0, 9),
    B=st.integers(1, 6),
    C=st.integers(2, 5),
    alpha=st.sampled_from([0.0, 0.3, 0.6, 1.0]),
    smoothing=st.sampled_from([0.0, 0.1]),
    dtype=st.sampled_from([torch.float32, torch.bfloat16, torch.float16]),
    seed=st.integers(0, 1000),
)
def test_the_equation(M, B, C, alpha, smoothing, dtype, seed):
    generator = torch.Generator().manual_seed(seed)
    losses = torch.rand(M, generator=generator) * 5
    logits = (2 * torch.randn(B, C, generator=generator)).to(dtype)
    labels = torch.randint(0, C, (B,), generator=generator)
    labels[0] = -100
    denominators = torch.tensor([7.5, 3.0])
    dual = dual_cross_entropy(losses, logits, labels, denominators, alpha, smoothing)
    mlm, classification = expected_terms(
        losses.numpy(), logits.double().numpy(), labels.tolist(), (7.5, 3.0), smoothing
    )
    assert float(dual.mlm) == pytest.approx(mlm, rel=1e-5, abs=1e-6)
    assert float(dual.classification) == pytest.approx(classification, rel=1e-5, abs=1e-6)
    joint = alpha * mlm + (1 - alpha) * classification
    assert float(dual.loss) == pytest.approx(joint, rel=1e-5, abs=1e-6)


def test_gradcheck():
    losses = torch.rand(4, dtype=torch.float64, requires_grad=True)
    logits = torch.randn(3, 5, dtype=torch.float64, requires_grad=True)
    labels, denominators = torch.tensor([1, -100, 4]), torch.tensor([4.0, 2.0])
    assert torch.autograd.gradcheck(
        lambda a, b: dual_cross_entropy(a, b, labels, denominators, 0.6, 0.1).loss,
        (losses, logits),
    )


def test_a_logit_of_minus_infinity_is_ordinary():
    logits = torch.tensor([[0.0, 1.0, -torch.inf]], requires_grad=True)
    dual = dual_cross_entropy(torch.ones(1), logits, torch.tensor([1]), torch.ones(2), 0.0)
    assert dual.loss.item() == pytest.approx(np.log1p(np.exp(-1.0)), rel=1e-6)
    dual.loss.backward()
    p = 1 / (1 + np.exp(1.0))
    assert logits.grad[0].tolist() == pytest.approx([p, -p, 0.0], rel=1e-6)


def test_fake_tensors_and_tracers_see_an_op():
    """Nothing may be read at the address of a tensor that has no memory."""
    arguments = (torch.rand(4), torch.randn(2, 3), torch.tensor([0, 2]), torch.ones(2))
    with FakeTensorMode() as mode:
        fake = dual_cross_entropy(*(mode.from_tensor(each) for each in arguments), 0.5)
    assert fake.loss.shape == ()

    def loss(logits):
        return dual_cross_entropy(arguments[0], logits, *arguments[2:], 0.5).loss

    traced = make_fx(loss)(arguments[1])
    other = torch.randn(2, 3)
    torch.testing.assert_close(traced(other), loss(other))


def test_nothing_counted_gives_zero():
    losses = torch.zeros(0, requires_grad=True)
    logits = torch.randn(2, 3, requires_grad=True)
    labels = torch.tensor([-100, -100])
    dual = dual_cross_entropy(losses, logits, labels, torch.zeros(2), 0.6)
    dual.loss.backward()
    assert float(dual.loss.detach()) == 0 and float(logits.grad.abs().max()) == 0


def test_a_nan_loss_is_not_hidden():
    labels, denominators = torch.tensor([0]), torch.ones(2)
    dual = dual_cross_entropy(
        torch.tensor([torch.nan]), torch.zeros(1, 2), labels, denominators, 0.5
    )
    assert dual.loss.isnan() and dual.classification.isfinite()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"alpha": 1.5}, "alpha must be in"),
        ({"label_smoothing": 1.0}, "label_smoothing must be in"),
        ({"labels": torch.tensor([0, 3])}, "labels holds 3, outside the 3 classes"),
        ({"labels": torch.tensor([0])}, "labels must have shape"),
        ({"losses": torch.zeros(2, 2)}, "losses must have shape"),
        ({"denominators": torch.zeros(2, dtype=torch.int64)}, "denominators must be float32"),
        ({"logits": torch.zeros(2, 0)}, "C > 0"),
    ],
)
def test_bad_arguments_are_named(change, message):
    arguments = {
        "losses": torch.zeros(4),
        "logits": torch.zeros(2, 3),
        "labels": torch.tensor([0, 1]),
        "denominators": torch.ones(2),
        "alpha": 0.5,
    }
    with pytest.raises(ValueError, match=message):
        dual_cross_entropy(**{**arguments, **change})


def test_compiles_without_graph_breaks():
    arguments = (torch.rand(4), torch.randn(2, 3), torch.tensor([0, 2]), torch.ones(2), 0.6)
    compiled = torch.compile(dual_cross_entropy, fullgraph=True)(*arguments)
    torch.testing.assert_close(tuple(compiled), tuple(dual_cross_entropy(*arguments)))


@pytest.mark.parametrize("part", [0, 1, 2])
def test_gradients_of_each_term_on_every_back_end(part):
    """Differentiates each of the three terms alone and compares with autograd in float64."""
    generator = torch.Generator().manual_seed(3)
    losses, logits = torch.rand(7, generator=generator), torch.randn(4, 3, generator=generator)
    labels, denominators = torch.tensor([2, -100, 0, 1]), torch.tensor([5.0, 3.0])
    exact = [losses.double().requires_grad_(), logits.double().requires_grad_()]
    rows = torch.nn.functional.cross_entropy(exact[1], labels, reduction="sum", label_smoothing=0.1)
    mlm, classification = exact[0].sum() / 5, rows / 3
    terms = (0.3 * mlm + 0.7 * classification, mlm, classification)
    want = torch.autograd.grad(terms[part], exact, allow_unused=True)
    for name in ("cpp", "reference"):
        ours = [losses.clone().requires_grad_(), logits.clone().requires_grad_()]
        with backends.use(name):
            dual = dual_cross_entropy(*ours, labels, denominators, 0.3, 0.1)
        assert float(dual[part].detach()) == pytest.approx(float(terms[part].detach()), rel=1e-5)
        dual[part].backward()
        for have, expected in zip(ours, want, strict=True):
            expected = torch.zeros_like(have) if expected is None else expected.float()
            got = torch.zeros_like(have) if have.grad is None else have.grad
            torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("C", [2, 3, 20])
def test_plain_fine_tuning_has_the_same_bits_on_both(C):
    """With alpha = 0, loss and gradient are rounded once from float64, so training is the same."""
    generator = torch.Generator().manual_seed(C)
    logits = 3 * torch.randn(512, C, generator=generator)
    labels = torch.randint(0, C, (512,), generator=generator)
    found = []
    for name in ("reference", "cpp"):
        leaf = logits.clone().requires_grad_()
        with backends.use(name):
            dual = dual_cross_entropy(torch.zeros(0), leaf, labels, torch.tensor([0.0, 512.0]), 0.0)
        dual.loss.backward()
        found.append((dual.loss.item(), leaf.grad))
    assert found[0][0] == found[1][0] and torch.equal(found[0][1], found[1][1])


def test_registered_for_compilation():
    arguments = (torch.rand(4), torch.randn(2, 3), torch.tensor([0, 2]), torch.ones(2))
    for tensor in arguments[:2]:
        tensor.requires_grad_()
    torch.library.opcheck(
        torch.ops.masktuning.dual_cross_entropy.default, (*arguments, 0.6, 0.1, -100, "cpp")
    )
