"""The pooled state is what the stock head turns into the stock logits."""

import pytest
import torch
from families import tiny_model, tiny_tokenizer

from masktuning.methods.base import Method, NoOptions
from masktuning.modeling.attention_mask import probe_batch
from masktuning.modeling.pooled_state import has_pooled_state


class Pooling(Method):
    requires = frozenset({"pooled"})


# What each family's head does to the state after its first dropout, which is off here.
HEADS = {
    "bert": lambda c, h: c.classifier(h),
    "roberta": lambda c, h: c.classifier.out_proj(torch.tanh(c.classifier.dense(h))),
    "distilbert": lambda c, h: c.classifier(torch.relu(c.pre_classifier(h))),
    "albert": lambda c, h: c.classifier(h),
    "bart": lambda c, h: c.classification_head(h),
}


@pytest.mark.parametrize("family", HEADS)
@pytest.mark.parametrize("training", [True, False])
def test_the_head_makes_the_logits_of_it(family, training):
    model = tiny_model(family).train(training)
    ids, mask = probe_batch(model.classifier)
    if family == "bart":  # it pools at the last </s> of a text, which must not be padding
        mask = None
    output = model(ids, mask, pooled=True)
    assert output.pooled.shape == (2, 32) and output.pooled.requires_grad
    torch.testing.assert_close(HEADS[family](model.classifier, output.pooled), output.logits)
    assert torch.equal(model(ids, mask).logits, output.logits)


@pytest.mark.parametrize("family", ["bert", "roberta"])
def test_a_last_layer_of_one_position_gives_the_same(family):
    model = tiny_model(family)
    ids, mask = probe_batch(model.classifier)
    assert model._last_layer is not None
    reduced = model(ids, mask, pooled=True).pooled
    model._last_layer = None
    whole = model(ids, mask, pooled=True).pooled
    torch.testing.assert_close(reduced, whole, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_dropout_of_the_head_comes_after_it(dropout):
    model = tiny_model("bert").train()
    model.classifier.dropout.p = dropout
    ids = probe_batch(model.classifier)[0]
    first, second = (model(ids, pooled=True) for _ in range(2))
    assert torch.equal(first.pooled, second.pooled)
    assert torch.equal(first.logits, second.logits) == (dropout == 0)


def test_a_classifier_that_reads_several_states_is_one_line():
    model = tiny_model("modernbert", classifier_pooling="mean")
    assert not has_pooled_state(model.classifier)
    with pytest.raises(ValueError, match="modernbert reads more than one state of a text") as told:
        Pooling(model, tiny_tokenizer(), NoOptions())
    assert "\n" not in str(told.value)
    assert has_pooled_state(tiny_model("modernbert", classifier_pooling="cls").classifier)
