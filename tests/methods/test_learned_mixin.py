"""Learned-Mixin against its equation in float64, with and without the entropy penalty."""

import pytest
import torch
from debiasing import BIAS, FAMILIES, LABELS, Stock, batch_of, method_of, plain, rows_of, step_of
from families import tiny_model
from pair_tokenizers import pair_tokenizer
from stock_step import assert_same

from masktuning.methods.bias_product import BiasProduct
from masktuning.methods.learned_mixin import LearnedMixin


def with_gate(method):
    """The method with weights of the gate that are not 0."""
    with torch.no_grad():
        method.gate.weight.copy_(torch.linspace(-1, 1.5, 32)[None])
        method.gate.bias.fill_(0.4)
    return method


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("penalty", [0.0, 0.03, 2.0])
def test_loss_and_gradients(family, penalty):
    method = with_gate(method_of(LearnedMixin, family, entropy_penalty=penalty))
    batch = batch_of(method, rows_of(method))
    loss, gradients, step = step_of(method, batch)
    stock = Stock(method, batch)
    w, c = stock.own["gate.weight"], stock.own["gate.bias"]
    expected, trusts, entropies = 0, [], []
    for i, label in enumerate(LABELS):
        trust = torch.log(1 + torch.exp((w[0] * stock.pooled[i]).sum() + c[0]))
        powers = torch.tensor(BIAS[i], dtype=torch.float64) ** trust
        q = powers / powers.sum()
        product = stock.logits[i].softmax(-1) * powers
        entropy = -(q * q.log()).sum()
        expected = expected - (product[label] / product.sum()).log() / 4 + penalty * entropy / 4
        trusts.append(float(trust.detach()))
        entropies.append(float(entropy.detach()))
    expected_gradients = stock.gradients(expected)
    assert {"gate.weight", "gate.bias"} <= gradients.keys()
    assert_same((loss, gradients), (float(expected.detach()), expected_gradients))
    logged = {name: float(value) for name, value in step.logged.items()}
    assert logged["bias_trust"] == pytest.approx(sum(trusts) / 4, rel=1e-5)
    assert logged["bias_entropy"] == pytest.approx(sum(entropies) / 4, rel=1e-5)
    assert logged["loss_cls"] == pytest.approx(plain(method, batch), rel=1e-5)


def test_a_uniform_bias_is_plain_fine_tuning():
    method = with_gate(method_of(LearnedMixin, entropy_penalty=0.0))
    batch = batch_of(method, rows_of(method, bias=[[1 / 3] * 3] * 4))
    loss, gradients, _ = step_of(method, batch)
    assert loss == pytest.approx(plain(method, batch), rel=1e-5)
    assert float(gradients["gate.weight"].abs().max()) < 1e-6


def test_a_trust_of_one_is_the_bias_product():
    method = method_of(LearnedMixin, entropy_penalty=0.0)
    with torch.no_grad():
        method.gate.bias.fill_(0.5413248546129181)  # ln(e - 1), of which softplus is 1
    product = method_of(BiasProduct)
    ours = step_of(method, batch_of(method, rows_of(method)))[0]
    assert ours == pytest.approx(step_of(product, batch_of(product, rows_of(product)))[0], rel=1e-5)


def test_the_penalty_rewards_a_bias_that_is_used():
    method = method_of(LearnedMixin, entropy_penalty=100.0)
    assert float(method.gate.weight.detach().abs().max()) == 0
    gradients = step_of(method, batch_of(method, rows_of(method)))[1]
    assert float(gradients["gate.bias"]) < 0  # a step along it makes the trust larger


def test_the_gate_is_saved_and_loaded(tmp_path):
    method = with_gate(method_of(LearnedMixin))
    method.save_pretrained(tmp_path)
    other = method_of(LearnedMixin)
    other.load_weights(tmp_path)
    assert torch.equal(other.gate.weight, method.gate.weight)


def test_what_cannot_be_is_one_line():
    with pytest.raises(ValueError, match=r"entropy_penalty is -0.1: give 0 or more"):
        LearnedMixin.Options(entropy_penalty=-0.1).check()
    with pytest.raises(ValueError, match="bias_model is 'x'"):
        LearnedMixin.Options(bias_model="x").check()
    model = tiny_model("modernbert", classifier_pooling="mean")
    with pytest.raises(ValueError, match="modernbert reads more than one state of a text"):
        LearnedMixin(model, pair_tokenizer("roberta"), LearnedMixin.Options())
