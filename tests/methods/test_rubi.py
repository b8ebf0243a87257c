"""RUBi's loss against its equation in float64."""

import math

import pytest
import torch
from bias_head_twin import bias_cross_entropy, bias_logits
from debiasing import FAMILIES, LABELS, PAIRS, Stock, batch_of, method_of, plain, rows_of, step_of
from stock_step import assert_same

from masktuning.methods.rubi import Rubi


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("kind", ["overlap", "hypothesis"])
def test_loss_and_gradients(family, kind):
    method = method_of(Rubi, family, bias_head=kind)
    batch = batch_of(method, rows_of(method, bias=None))
    loss, gradients, step = step_of(method, batch)
    stock = Stock(method, batch)
    g = bias_logits(stock, kind, PAIRS)
    masked = (stock.logits / (1 + torch.exp(-g))).softmax(-1)
    main = sum(-masked[i, label].log() for i, label in enumerate(LABELS)) / 4
    bias = bias_cross_entropy(g, kind, LABELS)
    expected = stock.gradients(main + bias)
    assert_same((loss, gradients), (float((main + bias).detach()), expected))
    assert float(step.logged["loss_masked"]) == pytest.approx(float(main.detach()), rel=1e-5)
    assert float(step.logged["loss_bias"]) == pytest.approx(float(bias.detach()), rel=1e-5)


def with_constant_logits(value):
    method = method_of(Rubi)
    with torch.no_grad():
        method.bias_head[-1].weight.zero_()
        method.bias_head[-1].bias.fill_(value)
    return method, batch_of(method, rows_of(method, bias=None))


def test_large_logits_of_the_head_are_plain_fine_tuning():
    method, batch = with_constant_logits(40.0)
    loss = step_of(method, batch)[0]
    assert loss == pytest.approx(plain(method, batch) + math.log(3), rel=1e-5)


def test_logits_of_0_halve_those_of_the_classifier():
    method, batch = with_constant_logits(0.0)
    halves = Stock(method, batch).logits.detach() / 2
    expected = -halves.log_softmax(-1)[torch.arange(4), batch.labels].mean() + math.log(3)
    assert step_of(method, batch)[0] == pytest.approx(float(expected), rel=1e-5)
