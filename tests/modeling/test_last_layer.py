"""A last layer that computes some positions only gives the states that it gives for all."""

import copy
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from families import examples, tiny_model, tiny_tokenizer
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import (
    CheckpointImpl,
    checkpoint_wrapper,
)

from masktuning.data.collator import MaskTuningCollator
from masktuning.modeling import last_layer
from masktuning.modeling.last_layer import masked_places, reads_first
from masktuning.ops import MaskedTokens

REDUCIBLE = ("bert", "roberta", "electra", "xlm-roberta", "camembert", "ernie", "data2vec-text")
REDUCIBLE += ("roc_bert",)
# Another structure (DistilBERT), another order of its parts (Megatron), another pooling (BART).
OTHERS = ("distilbert", "megatron-bert", "roberta-prelayernorm", "xmod", "bart", "albert")


def double_model(family):
    model = tiny_model(family).double().train()
    return model, model._last_layer


@pytest.fixture
def computed(monkeypatch):
    """The shapes of what reduced layers returned."""
    shapes, stock = [], last_layer._states_at

    def states_at(*arguments):
        states = stock(*arguments)
        shapes.append(tuple(states.shape))
        return states

    monkeypatch.setattr(last_layer, "_states_at", states_at)
    return shapes


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
def test_logits_and_gradients_are_those_of_the_stock_classifier(family, padded, computed):
    model, _ = double_model(family)
    computed.clear()
    batch, *_ = texts()
    mask = batch["attention_mask"] if padded else None
    weights = torch.rand(6, model.config.num_labels, dtype=torch.float64)
    logits = model(batch["input_ids"], mask).logits
    assert computed == [(6, 1, model.config.hidden_size)]
    (logits * weights).sum().backward()
    ours = gradients(model)
    model.zero_grad()
    stock = model.classifier(input_ids=batch["input_ids"], attention_mask=mask).logits
    assert torch.allclose(logits, stock, rtol=1e-10)
    (stock * weights).sum().backward()
    assert_close(ours, gradients(model))


@pytest.mark.parametrize("family", REDUCIBLE)
def test_states_at_masked_positions_are_those_of_the_stock_encoder(family, computed):
    model, _ = double_model(family)
    computed.clear()
    batch, masked, offsets = texts()
    ids, mask = batch["input_ids"], batch["attention_mask"]
    states = model.encode_masked(masked, ids, offsets, 3, attention_mask=mask)
    assert computed == [(6, 3, model.config.hidden_size)]
    stock = model.encoder(input_ids=ids, attention_mask=mask)[0].flatten(0, 1)[masked.positions]
    assert torch.allclose(states, stock, rtol=1e-10)
    weights = torch.rand_like(stock)
    (states * weights).sum().backward()
    ours = gradients(model)
    model.zero_grad()
    (stock * weights).sum().backward()
    assert_close(ours, gradients(model))
    unknown = model.encode_masked(masked, ids, offsets, 0, attention_mask=mask)
    assert torch.allclose(unknown, stock, rtol=1e-10) and len(computed) == 1


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
def test_other_families_compute_all_positions(family, computed):
    model, last = double_model(family)
    computed.clear()
    assert last is None
    batch, masked, offsets = texts()
    ids = batch["input_ids"]
    states = model.encode_masked(masked, ids, offsets, 3)
    extras = {}
    if family == "bart":  # its decoder reads the original texts, shifted right
        start = torch.full((6, 1), model.config.decoder_start_token_id)
        extras["decoder_input_ids"] = torch.cat([start, ids[:, :-1]], 1)
    expected = model.encoder(input_ids=ids, **extras)[0].flatten(0, 1)[masked.positions]
    assert torch.allclose(states, expected, rtol=1e-10) and not computed


def test_a_classifier_that_reads_every_position_keeps_them():
    """A pooling over all states is found out by the logits it gives."""
    model = tiny_model("roberta")
    assert model._last_layer is not None
    head = model.classifier.classifier
    stock = head.forward
    head.forward = lambda features: stock(features.mean(1, keepdim=True))
    model.find_last_layer()
    assert model._last_layer is None


def watch(model, layer):
    layer.attention.self.register_forward_hook(lambda *_: None)


def wrap(model, layer):
    layers = model.encoder.encoder.layer
    layers[-1] = checkpoint_wrapper(layers[-1], checkpoint_impl=CheckpointImpl.NO_REENTRANT)


def replace_forward(model, layer):  # as training/compile.py does
    layer.forward = layer.forward


def compile_in_place(model, layer):
    layer.compile(backend="eager")


def checkpoint(model, layer):
    model.activation_checkpointing_enable()


def cut_off(model, layer):
    model.encoder.encoder.layer = model.encoder.encoder.layer[:1]


CHANGES = [watch, wrap, replace_forward, compile_in_place, checkpoint, cut_off]


@pytest.mark.filterwarnings("ignore:.*gradient_checkpointing_enable:FutureWarning")
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
@pytest.mark.parametrize("change", CHANGES)
def test_a_layer_that_somebody_changed_computes_all_positions(change, computed):
    model, last = double_model("bert")
    batch, masked, offsets = texts()
    ids = batch["input_ids"]
    change(model, last.layer)
    computed.clear()
    logits = model(ids).logits
    states = model.encode_masked(masked, ids, offsets, 3)
    assert not computed
    torch.testing.assert_close(logits, model.classifier(input_ids=ids).logits, rtol=1e-9, atol=0)
    expected = model.encoder(input_ids=ids)[0].flatten(0, 1)[masked.positions]
    torch.testing.assert_close(states, expected, rtol=1e-9, atol=0)
    (logits.sum() + states.sum()).backward()  # checkpoints compute the layer once more
    if change is checkpoint:  # in evaluation nothing is computed twice
        model.eval()(ids)
        assert computed


def test_two_threads_may_use_one_model():
    model, _ = double_model("bert")
    batch, masked, offsets = texts()
    ids = batch["input_ids"]
    model.eval()
    expected = model(ids).logits, model.encode_masked(masked, ids, offsets, 3)

    def work(index):
        with torch.no_grad():
            if index % 2:
                return model(ids).logits
            return model.encode_masked(masked, ids, offsets, 3)

    with ThreadPoolExecutor(4) as pool:
        for index, found in enumerate(pool.map(work, range(200))):
            assert torch.allclose(found, expected[0 if index % 2 else 1], rtol=1e-9)
    assert "forward" not in vars(model._last_layer.layer)


def test_the_layer_is_registered_once_and_its_forward_pass_comes_back():
    model, last = double_model("bert")
    assert not any("_last_layer" in name for name in model.state_dict())
    with pytest.raises(KeyError), reads_first(last):
        assert "forward" in vars(last.layer)
        raise KeyError
    assert "forward" not in vars(last.layer)
    twin = copy.deepcopy(model)
    assert twin._last_layer.layer in list(twin.modules())
    assert twin._last_layer.layer is not last.layer
