"""The debiased focal loss against its equation in float64."""

import pytest
import torch
from bias_head_twin import bias_cross_entropy, bias_logits
from debiasing import FAMILIES, LABELS, PAIRS, Stock, batch_of, method_of, plain, rows_of, step_of
from stock_step import assert_same

from masktuning.methods.debiased_focal import DebiasedFocal


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("kind", ["overlap", "hypothesis"])
@pytest.mark.parametrize("gamma", [2.0, 0.5])
def test_loss_and_gradients(family, kind, gamma):
    method = method_of(DebiasedFocal, family, bias_head=kind, focal_gamma=gamma)
    batch = batch_of(method, rows_of(method, bias=None))
    loss, gradients, step = step_of(method, batch)
    stock = Stock(method, batch)
    g = bias_logits(stock, kind, PAIRS)
    f, b = stock.logits.softmax(-1), g.softmax(-1)
    main = sum(-((1 - b[i, y]) ** gamma) * f[i, y].log() for i, y in enumerate(LABELS)) / 4
    bias = bias_cross_entropy(g, kind, LABELS)
    expected = stock.gradients(main + bias)
    assert_same((loss, gradients), (float((main + bias).detach()), expected))
    assert float(step.logged["loss_main"]) == pytest.approx(float(main.detach()), rel=1e-5)
    assert float(step.logged["loss_bias"]) == pytest.approx(float(bias.detach()), rel=1e-5)


def test_gamma_0_is_plain_fine_tuning():
    method = method_of(DebiasedFocal, focal_gamma=0.0)
    batch = batch_of(method, rows_of(method, bias=None))
    step = step_of(method, batch)[2]
    assert float(step.logged["loss_main"]) == pytest.approx(plain(method, batch), rel=1e-5)


def test_a_certain_head_has_a_finite_gradient():
    method = method_of(DebiasedFocal, focal_gamma=0.5)
    with torch.no_grad():
        method.bias_head[-1].bias.copy_(torch.tensor([200.0, 0.0, 0.0]))
    batch = batch_of(method, rows_of(method, labels=[0, 0, 0, 0], bias=None))
    gradients = step_of(method, batch)[1]
    assert all(bool(g.isfinite().all()) for g in gradients.values())


def test_an_option_out_of_range():
    with pytest.raises(ValueError, match=r"focal_gamma is -1.0: give 0 or more"):
        DebiasedFocal.Options(focal_gamma=-1.0).check()
    with pytest.raises(ValueError, match="bias_head is 'x'"):
        DebiasedFocal.Options(bias_head="x").check()
