"""Cutoff against its equation, one text at a time on a stock float64 classifier."""

import masktuning_C
import pytest
import torch
from families import examples, tiny_model, tiny_tokenizer
from stock_step import EPOCH, SEED, assert_same, make_batch, stock_twins

from masktuning.data.batch import Batch
from masktuning.methods.cutoff import (
    Cutoff,
    CutoffOptions,
    kept_features,
    kept_outside_span,
    kept_tokens,
)
from masktuning.methods.step import Step

STREAM = 3


def draw_of(place, example, epoch=EPOCH):
    return masktuning_C.philox4x32_10(place, example, epoch, STREAM, SEED, 0)[0]


def span_of(length, rate, example, epoch=EPOCH):
    """The definition: where the span begins and how long it is."""
    cut = int(length * rate)
    return (draw_of(0, example, epoch) * (length - cut)) >> 32, cut


def cut_of(options, length, width, example, epoch=EPOCH):
    """The definition: the positions and the dimensions that one text loses."""
    if options.cutoff_type == "token":
        count = int(length * options.cutoff_rate)
        return sorted({(draw_of(i, example, epoch) * length) >> 32 for i in range(count)}), []
    if options.cutoff_type == "feature":
        draws = sorted((draw_of(h, example, epoch), h) for h in range(width))
        return [], [h for _, h in draws[: int(width * options.cutoff_rate)]]
    start, cut = span_of(length, options.cutoff_rate, example, epoch)
    return list(range(start, start + cut)), []


def expected_step(model, batch, options, epoch=EPOCH, weights=(1.0, 1.0)):
    """(loss, {name: gradient}): CE(p, y) + w * CE(q, y) + v * JS(p, q), averaged over the texts.

    `weights` are those of the classes, in the two cross-entropies only.
    """
    classifier, _ = stock_twins(model)
    total, consistency, weight = 0.0, 0.0, 0.0
    for b, label in enumerate(batch["labels"].tolist()):
        length = int(batch["attention_mask"][b].sum())
        ids = batch["input_ids"][b : b + 1, :length]
        width = classifier.get_input_embeddings().weight.shape[1]
        example = int(batch["example_ids"][b])
        tokens, features = cut_of(options, length, width, example, epoch)
        mask = torch.ones_like(ids)
        p = classifier(input_ids=ids, attention_mask=mask).logits[0].softmax(-1)
        mask[0, tokens] = 0

        def zero(module, inputs, output, tokens=tokens, features=features):
            changed = output.clone()
            changed[0, tokens] = 0
            changed[0, :, features] = 0
            return changed

        handle = classifier.base_model.embeddings.register_forward_hook(zero)
        q = classifier(input_ids=ids, attention_mask=mask).logits[0].softmax(-1)
        handle.remove()
        m = (p + q) / 2
        kl = (lambda a, b: (b * (b / a).log()).sum()) if options.divergence == "swapped" else None
        kl = kl or (lambda a, b: (a * (a / b).log()).sum())
        total = total - weights[label] * (p[label].log() + options.cutoff_weight * q[label].log())
        consistency = consistency + options.consistency_weight * (kl(p, m) + kl(q, m)) / 2
        weight += weights[label]
    loss = total / weight + consistency / len(batch["labels"])
    loss.backward()
    named = {f"classifier.{n}": p.grad for n, p in classifier.named_parameters()}
    return float(loss.detach()), {n: g for n, g in named.items() if g is not None}


def our_step(model, batch, options):
    method = Cutoff(model.train(), tiny_tokenizer(), options)
    counts = {"labels": torch.tensor(float(len(batch["labels"])))}
    step = Step(torch.tensor([SEED, EPOCH]), counts)
    (loss,) = method.losses(Batch.from_dict(batch), step)
    loss.backward()
    parts = {name: float(value) for name, value in step.logged.items()}
    weighted = (
        parts["loss_cls"]
        + options.cutoff_weight * parts["loss_cut"]
        + options.consistency_weight * parts["loss_consistency"]
    )
    assert weighted == pytest.approx(float(loss.detach()), rel=1e-6)
    gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    return float(loss.detach()), gradients


@pytest.mark.parametrize("kind", ["span", "token", "feature"])
@pytest.mark.parametrize(
    ("family", "divergence"),
    [("bert", "js"), ("bert", "swapped"), ("roberta", "js"), ("distilbert", "js")]
    + [("electra", "js")],
)
def test_loss_and_gradients(family, divergence, kind):
    """ELECTRA's embeddings are narrower than its hidden states."""
    model = tiny_model(family)
    batch = make_batch(6)
    options = CutoffOptions(
        cutoff_type=kind,
        cutoff_rate=0.3,
        cutoff_weight=0.7,
        consistency_weight=1.3,
        divergence=divergence,
    )
    lengths = batch["attention_mask"].sum(1).tolist()
    assert any(int(0.3 * length) > 1 for length in lengths)
    assert_same(our_step(model, batch, options), expected_step(model, batch, options))


def test_the_span_is_where_the_definition_puts_it():
    """For every length, also with padding on the left, where a text's first token is not at 0."""
    lengths = torch.arange(2, 40)
    t_L = torch.arange(40)
    ids = torch.arange(len(lengths)) + 7
    rng = torch.tensor([SEED, EPOCH])
    right = (t_L < lengths[:, None]).long()
    kept = kept_outside_span(right, 0.25, ids, rng)
    kept_left = kept_outside_span(right.flip(1), 0.25, ids, rng)
    for b, length in enumerate(lengths.tolist()):
        start, cut = span_of(length, 0.25, int(ids[b]))
        expected = [not start <= t < start + cut for t in range(length)]
        assert kept[b].tolist() == expected + [True] * (40 - length)
        assert kept_left[b].tolist() == [True] * (40 - length) + expected
    whole = kept_outside_span(right, 0.0, ids, rng)
    assert bool(whole.all())


def test_single_tokens_are_where_the_definition_puts_them():
    lengths = torch.arange(2, 40)
    t_L = torch.arange(40)
    ids = torch.arange(len(lengths)) + 7
    rng = torch.tensor([SEED, EPOCH])
    right = (t_L < lengths[:, None]).long()
    kept = kept_tokens(right, 0.5, ids, rng)
    kept_left = kept_tokens(right.flip(1), 0.5, ids, rng)
    fewer = 0
    for b, length in enumerate(lengths.tolist()):
        options = CutoffOptions(cutoff_type="token", cutoff_rate=0.5)
        cut, _ = cut_of(options, length, 0, int(ids[b]))
        expected = [t not in cut for t in range(length)]
        assert kept[b].tolist() == expected + [True] * (40 - length)
        assert kept_left[b].tolist() == [True] * (40 - length) + expected
        fewer += len(cut) < int(length * 0.5)
    assert fewer  # so some positions were drawn twice
    assert bool(kept_tokens(right, 0.0, ids, rng).all())


def test_dimensions_are_distinct_and_differ_between_texts_and_epochs():
    ids = torch.arange(50)
    kept = kept_features(20, 0.29, ids, torch.tensor([SEED, EPOCH]))
    assert ((~kept).sum(1) == 5).all()
    assert len({tuple(row) for row in kept.tolist()}) > 40
    later = kept_features(20, 0.29, ids, torch.tensor([SEED, EPOCH + 1]))
    assert (kept != later).any(1).sum() > 40
    assert bool(kept_features(20, 0.0, ids, torch.tensor([SEED, EPOCH])).all())


@pytest.mark.parametrize("kind", ["span", "token", "feature"])
def test_nothing_cut_and_no_weights_is_plain_fine_tuning(kind):
    model, batch = tiny_model("bert"), make_batch(4)
    classifier, _ = stock_twins(model)
    logits = classifier(batch["input_ids"], batch["attention_mask"]).logits
    plain = float(torch.nn.functional.cross_entropy(logits, batch["labels"]).detach())
    zero = {"cutoff_weight": 0.0, "consistency_weight": 0.0}
    loss, _ = our_step(model, batch, CutoffOptions(cutoff_type=kind, cutoff_rate=0.3, **zero))
    assert loss == pytest.approx(plain, rel=1e-5)
    loss, _ = our_step(model, batch, CutoffOptions(cutoff_type=kind, cutoff_rate=0.0))
    assert loss == pytest.approx(2 * plain, rel=1e-5)  # both predictions are the same


def test_a_batch_without_padding_is_cut_too():
    model = tiny_model("bert")
    row = examples(1, 5)[0]
    batch = {
        "input_ids": torch.tensor([row["input_ids"]] * 2),
        "labels": torch.tensor([1, 1]),
        "example_ids": torch.tensor([3, 4]),
    }
    options = CutoffOptions(cutoff_rate=0.4)
    ours = our_step(model, batch, options)
    batch["attention_mask"] = torch.ones_like(batch["input_ids"])
    assert_same(ours, expected_step(model, batch, options))


def test_a_family_without_one_embedding_layer_is_told():
    with pytest.raises(ValueError, match="bart has no single embedding layer"):
        Cutoff(tiny_model("bart"), tiny_tokenizer(), CutoffOptions())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"cutoff_type": "word"}, "cutoff_type is word: give span or token or feature"),
        ({"divergence": "kl"}, "divergence is kl: give js or swapped"),
        ({"cutoff_rate": 1.0}, "cutoff_rate is 1.0"),
        ({"cutoff_weight": -1.0}, "cutoff_weight is -1.0"),
        ({"consistency_weight": float("nan")}, "consistency_weight is nan"),
    ],
)
def test_options_out_of_range(options, message):
    with pytest.raises(ValueError, match=message):
        CutoffOptions(**options).check()
