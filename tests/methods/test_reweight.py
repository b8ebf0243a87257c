"""Reweighting by a frozen bias model against its equation in float64."""

import pytest
from debiasing import FAMILIES, LABELS, Stock, batch_of, method_of, plain, rows_of, step_of
from stock_step import assert_same

from masktuning.config.errors import UsageError
from masktuning.methods.reweight import Reweight


@pytest.mark.parametrize("family", FAMILIES)
def test_loss_and_gradients(family):
    method = method_of(Reweight, family)
    batch = batch_of(method, rows_of(method))
    loss, gradients, step = step_of(method, batch)
    stock = Stock(method, batch)
    weights = [1 - 0.7, 1 - 0.3, 1 - 0.98, 1 - 0.3]
    log_f = stock.logits.log_softmax(-1)
    total = sum(-w * log_f[i, LABELS[i]] for i, w in enumerate(weights))
    expected = total / sum(weights)
    assert_same((loss, gradients), (float(expected.detach()), stock.gradients(expected)))
    assert float(step.logged["example_weight"]) == pytest.approx(sum(weights) / 4, rel=1e-5)
    assert float(step.logged["loss_cls"]) == pytest.approx(plain(method, batch), rel=1e-5)


def test_a_uniform_bias_is_plain_fine_tuning():
    method = method_of(Reweight)
    batch = batch_of(method, rows_of(method, bias=[[1 / 3] * 3] * 4))
    assert step_of(method, batch)[0] == pytest.approx(plain(method, batch), rel=1e-5)


def test_an_example_without_a_label_has_no_weight():
    method = method_of(Reweight)
    rows = rows_of(method)
    without = [{**row, "labels": -100} if i == 2 else row for i, row in enumerate(rows)]
    three = step_of(method, batch_of(method, [*rows[:2], rows[3]]))[0]
    assert step_of(method, batch_of(method, without))[0] == pytest.approx(three, rel=1e-5)


def test_two_micro_batches_are_one_batch():
    """The weights are summed over the whole optimizer step."""
    method = method_of(Reweight)
    rows = rows_of(method)
    whole, gradients, _ = step_of(method, batch_of(method, rows))
    halves = [batch_of(method, rows[:2]), batch_of(method, rows[2:])]
    counts = [method.counts(half) for half in halves]
    total = {name: counts[0][name] + counts[1][name] for name in counts[0]}
    assert float(total["example_weights"]) == pytest.approx(4 - 0.7 - 0.3 - 0.98 - 0.3, rel=1e-5)
    method.counts = lambda batch: total
    found = [step_of(method, half)[:2] for half in halves]
    summed = {name: found[0][1][name] + found[1][1][name] for name in gradients}
    assert_same((found[0][0] + found[1][0], summed), (whole, gradients))


def test_a_certain_bias_leaves_nothing_to_learn():
    method = method_of(Reweight)
    batch = batch_of(method, rows_of(method, bias=[[1.0, 0.0, 0.0]] * 4, labels=[0] * 4))
    loss, gradients, _ = step_of(method, batch)
    assert loss == 0 and all(float(g.abs().max()) == 0 for g in gradients.values())


def test_without_a_bias_model():
    method = method_of(Reweight)
    with pytest.raises(UsageError, match="--bias_file is missing"):
        method.prepare(rows_of(method, bias=None), None)
    with pytest.raises(UsageError, match="--bias_file is missing"):
        Reweight.check_task(Reweight.Options(), True, ["a", "b"])
