"""A last layer that computes some positions only gives the states that it gives for all."""

import copy

import numpy as np
import pytest
import torch
from families import examples, tiny_model, tiny_tokenizer

from masktuning.data.collator import MaskTuningCollator
from masktuning.modeling.last_layer import masked_places, reads_only
from masktuning.ops import MaskedTokens

REDUCIBLE = ("bert", "roberta", "electra", "xlm-roberta", "camembert", "ernie", "data2vec-text")
# Another structure (DistilBERT), another order of its parts (Megatron), another pooling (BART).
OTHERS = ("distilbert", "megatron-bert", "roberta-prelayernorm", "xmod", "bart", "albert")


def double_model(family):
    model = tiny_model(family).double().train()
    layer = model._last_layer[0]
    return model, layer


def texts():
    """Six padded texts as the collator gives them, each with 0 to 3 masked tokens."""
    batch = MaskTuningCollator(tiny_tokenizer())(examples(6, 1))
    lengths = batch["attention_mask"].sum(1)
    assert len(set(lengths.tolist())) > 1
    counts = torch.tensor([2, 0, 1, 3, 0, 1])
    L = batch["input_ids"].shape[1]
    positions = [b * L + t for b, k in enumerate(counts.tolist()) for t in range(1, 1 + k)]
    offsets = torch.cat([torch.zeros(1, dtype=torch.int64), counts.cumsum(0)])
    masked = MaskedTokens(batch["input_ids"], torch.tensor(positions), torch.zeros(len(positions)))
    return batch, masked, offsets


def gradients(model):
    return {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


def assert_close(found, expected):
    for name in found.keys() | expected.keys():
        have, want = found.get(name), expected.get(name)
        zero = torch.zeros(())
        have, want = (zero if one is None else one for one in (have, want))
        assert torch.allclose(have, want, rtol=1e-9, atol=1e-12), name


@pytest.mark.parametrize("family", REDUCIBLE)
@pytest.mark.parametrize("padded", [True, False])
def test_logits_and_gradients_are_those_of_the_stock_classifier(family, padded):
    model, layer = double_model(family)
    assert layer is not None
    batch, *_ = texts()
    mask = batch["attention_mask"] if padded else None
    weights = torch.rand(6, model.config.num_labels, dtype=torch.float64)
    seen = []
    handle = layer.register_forward_hook(lambda module, inputs, output: seen.append(output.shape))
    logits = model(batch["input_ids"], mask).logits
    handle.remove()
    assert seen == [(6, 1, model.config.hidden_size)]
    (logits * weights).sum().backward()
    ours = gradients(model)
    model.zero_grad()
    stock = model.classifier(input_ids=batch["input_ids"], attention_mask=mask).logits
    assert torch.allclose(logits, stock, rtol=1e-10)
    (stock * weights).sum().backward()
    assert_close(ours, gradients(model))


@pytest.mark.parametrize("family", REDUCIBLE)
def test_states_at_masked_positions_are_those_of_the_stock_encoder(family):
    model, layer = double_model(family)
    batch, masked, offsets = texts()
    ids, mask = batch["input_ids"], batch["attention_mask"]
    seen = []
    handle = layer.register_forward_hook(lambda module, inputs, output: seen.append(output.shape))
    states = model.encode_masked(masked, ids, offsets, 3, attention_mask=mask)
    handle.remove()
    assert seen == [(6, 3, model.config.hidden_size)]
    stock = model.encoder(input_ids=ids, attention_mask=mask)[0].flatten(0, 1)[masked.positions]
    assert torch.allclose(states, stock, rtol=1e-10)
    weights = torch.rand_like(stock)
    (states * weights).sum().backward()
    ours = gradients(model)
    model.zero_grad()
    (stock * weights).sum().backward()
    assert_close(ours, gradients(model))
    unknown = model.encode_masked(masked, ids, offsets, 0, attention_mask=mask)
    assert torch.allclose(unknown, stock, rtol=1e-10)


def test_surplus_rows_get_states_and_change_no_other():
    model, _ = double_model("bert")
    batch, masked, offsets = texts()
    longer = torch.cat([masked.positions, torch.tensor([-1, -1])])
    given = masked._replace(positions=longer)
    states = model.encode_masked(given, batch["input_ids"], offsets, 3)
    expected = model.encode_masked(masked, batch["input_ids"], offsets, 3)
    assert torch.equal(states[:-2], expected) and states[-2:].isfinite().all()


def test_masked_places_of_counts_from_none_to_all():
    generator = np.random.default_rng(0)
    for _ in range(50):
        B, L = generator.integers(1, 6), generator.integers(1, 9)
        counts = generator.integers(0, L + 1, B)
        if not counts.sum():
            continue
        chosen = [sorted(generator.permutation(L)[:k]) for k in counts]
        positions = torch.tensor([b * L + t for b, row in enumerate(chosen) for t in row])
        offsets = torch.tensor([0, *np.cumsum(counts)])
        places = masked_places(positions, offsets, int(counts.max()), int(L))
        assert places.positions_BK.shape == (B, counts.max())
        assert torch.equal(places.positions_BK.flatten()[places.rows_M], positions)
        assert int(places.positions_BK.max()) < B * L


@pytest.mark.parametrize("family", OTHERS)
def test_other_families_compute_all_positions(family):
    model, layer = double_model(family)
    assert layer is None
    batch, masked, offsets = texts()
    ids = batch["input_ids"]
    states = model.encode_masked(masked, ids, offsets, 3)
    expected = model.encode(ids, ids).flatten(0, 1)[masked.positions]
    assert torch.allclose(states, expected, rtol=1e-10)


def test_a_classifier_that_reads_every_position_keeps_them():
    """A pooling over all states is found out by the logits it gives."""
    model = tiny_model("roberta")
    head = model.classifier.classifier
    stock = head.forward
    head.forward = lambda features: stock(features.mean(1, keepdim=True))
    assert type(model)(model.classifier, None)._last_layer == (None,)


def test_activation_checkpointing_and_compiled_layers_compute_all_positions():
    model, layer = double_model("bert")
    batch, *_ = texts()
    expected = model(batch["input_ids"]).logits
    model.activation_checkpointing_enable()
    with reads_only(layer, None) as only:
        assert not only
    assert torch.allclose(model(batch["input_ids"]).logits, expected, rtol=1e-10)
    model.eval()  # nothing is repeated in evaluation
    with reads_only(layer, None) as only:
        assert only
    layer.forward = layer.forward  # as training/compile.py replaces it
    with reads_only(layer, None) as only:
        assert not only


def test_the_layer_is_registered_once_and_its_forward_pass_comes_back():
    model, layer = double_model("bert")
    assert not any("_last_layer" in name for name in model.state_dict())
    with pytest.raises(KeyError), reads_only(layer, None):
        assert "forward" in vars(layer)
        raise KeyError
    assert "forward" not in vars(layer)
    twin = copy.deepcopy(model)
    assert twin._last_layer[0] in list(twin.modules()) and twin._last_layer[0] is not layer
