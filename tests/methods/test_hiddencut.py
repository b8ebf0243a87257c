"""HiddenCut against its equation: stock float64 layers, computed part by part for each text."""

import math

import masktuning_C
import pytest
import torch
from datasets import Dataset
from families import examples, tiny_model, tiny_tokenizer
from stock_step import EPOCH, SEED, assert_same, make_batch, stock_twins
from transformers import AutoModelForSequenceClassification

from masktuning import MaskTuningTrainer, arguments_for
from masktuning.data.batch import Batch
from masktuning.methods.hiddencut import Cut, HiddenCut, HiddenCutOptions
from masktuning.methods.step import Step
from masktuning.modeling.attention_received import attention_received, gives_attentions

STREAM = 4
OPTIONS = HiddenCutOptions(
    cutoff_rate=0.3, top_share=0.5, cutoff_weight=0.7, consistency_weight=1.3
)


def cut_of(received, layer, example, options=OPTIONS):
    """The definition: the first token of the span and the token after its last one."""
    length = len(received)
    count = max(1, int(options.top_share * length))
    top = sorted(sorted(range(length), key=lambda j: -received[j])[:count])
    draw = masktuning_C.philox4x32_10(layer, example, EPOCH, STREAM, SEED, 0)[0]
    start = top[(draw * count) >> 32]
    return start, min(length, start + max(1, int(options.cutoff_rate * length)))


def received_by(x, query, key, heads):
    """The attention that each token receives, by the definition, head by head."""
    q, k = query(x)[0], key(x)[0]
    size = q.shape[1] // heads
    total = torch.zeros(len(q), dtype=q.dtype)
    for a in range(heads):
        part = slice(a * size, (a + 1) * size)
        total += ((q[:, part] @ k[:, part].T) / math.sqrt(size)).softmax(-1).sum(0)
    return (total / heads).tolist()


def layer_states(layer, x, between=None):
    """A stock layer by its parts: LayerNorm(o + u), with o zero on the span `between`."""
    if hasattr(layer, "ffn"):  # DistilBERT
        u = layer.sa_layer_norm(layer.attention(x)[0] + x)
        o = layer.ffn.lin2(layer.ffn.activation(layer.ffn.lin1(u)))
        normalise = layer.output_layer_norm
    else:
        u = layer.attention(x)[0]
        o = layer.output.dense(layer.intermediate(u))
        normalise = layer.output.LayerNorm
    kept = torch.ones(o.shape[1], 1, dtype=o.dtype)
    if between is not None:
        kept[slice(*between)] = 0
    return normalise(o * kept + u)


def logits_of(classifier, ids, example=None):
    """The logits of one text; cut as `example` if that is given."""
    encoder = classifier.base_model
    stack = getattr(encoder, "encoder", None) or encoder.transformer
    x = encoder.embeddings(input_ids=ids)
    if hasattr(encoder, "embeddings_project"):
        x = encoder.embeddings_project(x)
    for i, layer in enumerate(stack.layer):
        attention = getattr(layer.attention, "self", layer.attention)
        names = ("query", "key") if hasattr(attention, "query") else ("q_lin", "k_lin")
        between = None
        if example is not None:
            query, key = (getattr(attention, name) for name in names)
            between = cut_of(received_by(x, query, key, 4), i, example)
        x = layer_states(layer, x, between)
    if hasattr(classifier, "pre_classifier"):  # DistilBERT
        return classifier.classifier(classifier.pre_classifier(x[:, 0]).relu())[0]
    if getattr(encoder, "pooler", None) is not None:
        return classifier.classifier(encoder.pooler(x))[0]
    return classifier.classifier(x)[0]


def expected_step(model, batch, options):
    """(loss, {name: gradient}): CE(p, y) + w * CE(q, y) + v * JS(p, q), averaged over the texts."""
    classifier, _ = stock_twins(model)
    total = 0.0
    for b, label in enumerate(batch["labels"].tolist()):
        length = int(batch["attention_mask"][b].sum())
        ids = batch["input_ids"][b : b + 1, :length]
        p = logits_of(classifier, ids).softmax(-1)
        stock = classifier(input_ids=ids).logits[0].softmax(-1)
        torch.testing.assert_close(p, stock)  # so the parts above are the model's
        q = logits_of(classifier, ids, int(batch["example_ids"][b])).softmax(-1)
        m = (p + q) / 2
        swapped = options.divergence == "swapped"
        pairs = [(m, p), (m, q)] if swapped else [(p, m), (q, m)]
        js = sum((a * (a / b).log()).sum() for a, b in pairs) / 2
        total = total - p[label].log() - options.cutoff_weight * q[label].log()
        total = total + options.consistency_weight * js
    loss = total / len(batch["labels"])
    loss.backward()
    named = {f"classifier.{n}": p.grad for n, p in classifier.named_parameters()}
    return float(loss.detach()), {n: g for n, g in named.items() if g is not None}


def hooked(model):
    """The modules that have hooks: transformers gives the embedding one for checkpointing."""
    return [m for m in model.modules() if m._forward_hooks or m._forward_pre_hooks]


def our_step(model, batch, options):
    model.zero_grad()
    method = HiddenCut(model.train(), tiny_tokenizer(), options)
    counts = {"labels": torch.tensor(float(len(batch["labels"])))}
    before = hooked(model)
    losses = method.losses(Batch.from_dict(batch), Step(torch.tensor([SEED, EPOCH]), counts))
    loss = next(losses)
    loss.backward()
    assert next(losses, None) is None
    assert hooked(model) == before
    gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    return float(loss.detach()), gradients


@pytest.mark.parametrize(
    ("family", "divergence"),
    [("bert", "js"), ("bert", "swapped"), ("roberta", "js"), ("distilbert", "js")]
    + [("electra", "js")],
)
def test_loss_and_gradients(family, divergence):
    model, batch = tiny_model(family), make_batch(6)
    options = HiddenCutOptions(0.7, 1.3, divergence, cutoff_rate=0.3, top_share=0.5)
    assert_same(our_step(model, batch, options), expected_step(model, batch, options))


def test_activation_checkpointing_changes_nothing():
    """It computes the layers a second time, which must be cut again, and at the same places."""
    batch = make_batch(5)
    plain = our_step(tiny_model("bert"), batch, OPTIONS)
    model = tiny_model("bert")
    model.activation_checkpointing_enable()
    assert_same(our_step(model, batch, OPTIONS), plain, 1e-6)


def test_without_weights_it_is_plain_fine_tuning():
    model, batch = tiny_model("bert"), make_batch(4)
    classifier, _ = stock_twins(model)
    logits = classifier(batch["input_ids"], batch["attention_mask"]).logits
    plain = float(torch.nn.functional.cross_entropy(logits, batch["labels"]).detach())
    loss, _ = our_step(model, batch, HiddenCutOptions(0.0, 0.0))
    assert loss == pytest.approx(plain, rel=1e-5)


def test_the_cut_takes_the_place_of_the_dropout_in_the_second_half_only():
    """With a dropout of 1 the first half has no feed-forward output, and the second has its own."""
    model, batch = tiny_model("bert"), make_batch(3)
    output = model.encoder.encoder.layer[0].output
    output.dropout.p = 1.0
    seen = []
    output.LayerNorm.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    attended = []
    attention = model.encoder.encoder.layer[0].attention
    attention.register_forward_hook(lambda module, inputs, out: attended.append(out[0]))
    method = HiddenCut(model.train(), tiny_tokenizer(), OPTIONS)
    seen.clear()  # of the probe
    attended.clear()
    step = Step(torch.tensor([SEED, EPOCH]), {"labels": torch.tensor(3.0)})
    next(method.losses(Batch.from_dict(batch), step))
    o = seen[0] - attended[0]
    assert bool((o[:3] == 0).all())
    zero_BL = (o[3:].abs() < 1e-6).all(-1)
    for b, length in enumerate(batch["attention_mask"].sum(1).tolist()):
        cut = int(zero_BL[b, :length].sum())
        assert 1 <= cut <= max(1, int(0.3 * length)) < length


def test_the_span_does_not_depend_on_padding():
    generator = torch.Generator().manual_seed(0)
    lengths = torch.arange(2, 40)
    right = (torch.arange(40) < lengths[:, None]).long()
    received = torch.rand(38, 40, generator=generator) * right
    ids = torch.arange(38) + 7

    def kept(mask, values, layer):
        batch = Batch(torch.zeros_like(mask), torch.zeros(38), ids, mask)
        return Cut(batch, torch.tensor([SEED, EPOCH]), OPTIONS).kept(layer, values)

    for layer in (0, 1):
        ours = kept(right, received, layer)
        left = kept(right.flip(1), received.flip(1).gather(1, roll(lengths)), layer)
        for b, length in enumerate(lengths.tolist()):
            start, end = cut_of(received[b, :length].tolist(), layer, int(ids[b]))
            expected = [not start <= t < end for t in range(length)]
            assert ours[b].tolist() == expected + [True] * (40 - length)
            assert left[b].tolist() == [True] * (40 - length) + expected
    assert not torch.equal(kept(right, received, 0), kept(right, received, 1))


def roll(lengths):
    """Indices that undo a flip within each text, so that only the padding changes sides."""
    t_L = torch.arange(40)
    starts = 40 - lengths[:, None]
    return torch.where(t_L >= starts, 39 - (t_L - starts), t_L)


def test_attention_is_that_of_the_stock_model():
    """transformers' eager attention returns its probabilities."""
    model = tiny_model("roberta").eval()
    batch = make_batch(3)
    mask = batch["attention_mask"]
    eager = AutoModelForSequenceClassification.from_config(
        model.config, attn_implementation="eager"
    ).eval()
    eager.load_state_dict(model.classifier.state_dict())
    states = eager(batch["input_ids"], mask, output_attentions=True, output_hidden_states=True)
    for i, weights in enumerate(states.attentions):
        attention = eager.base_model.encoder.layer[i].attention.self
        x = states.hidden_states[i]
        ours = attention_received(attention.query(x), attention.key(x), mask.bool(), 8)
        expected = (weights * mask[:, None, :, None]).sum(2).mean(1)
        torch.testing.assert_close(ours, expected)


@pytest.mark.parametrize(
    "family", ["bart", "albert", "mpnet", "modernbert", "deberta-v2", "roformer"]
)
def test_a_family_with_other_layers_is_told(family):
    with pytest.raises(ValueError, match=f"the layers of {family} do not have the attention"):
        HiddenCut(tiny_model(family), tiny_tokenizer(), HiddenCutOptions())


def test_a_feed_forward_network_in_chunks_is_told():
    model = tiny_model("bert", chunk_size_feed_forward=4)
    assert not gives_attentions(model.classifier)
    with pytest.raises(ValueError, match="without chunk_size_feed_forward"):
        HiddenCut(model, tiny_tokenizer(), HiddenCutOptions())


def test_compiled_layers_are_told(tmp_path):
    settings = {"max_steps": 1, "report_to": "none", "use_cpu": True, "torch_compile": True}
    trainer = MaskTuningTrainer(
        model=tiny_model("bert"),
        args=arguments_for("hiddencut")(str(tmp_path), **settings),
        train_dataset=Dataset.from_list(examples(8, 1)),
        processing_class=tiny_tokenizer(),
    )
    with pytest.raises(ValueError, match="which torch_compile does not allow"):
        trainer.train()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"cutoff_rate": 1.0}, "cutoff_rate is 1.0: give 0 or more, below 1"),
        ({"top_share": 0.0}, "top_share is 0.0: give a share above 0, up to 1"),
        ({"cutoff_weight": -1.0}, "cutoff_weight is -1.0"),
    ],
)
def test_options_out_of_range(options, message):
    with pytest.raises(ValueError, match=message):
        HiddenCutOptions(**options).check()
