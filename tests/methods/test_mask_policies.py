"""Mask policies and the gate: which tokens bear a label, which are masked, what is classified."""

import math

import numpy as np
import pytest
import torch
from datasets import Dataset
from families import examples, tiny_model, tiny_tokenizer
from stock_step import EPOCH, SEED

from masktuning.config.errors import UsageError
from masktuning.data.batch import Batch
from masktuning.data.collator import MaskTuningCollator, PaddingCollator
from masktuning.methods.mask_tuning import MaskTuning
from masktuning.methods.mask_tuning_options import MaskTuningOptions
from masktuning.methods.masks.association import label_association, with_label_bearing
from masktuning.methods.step import Step

ROWS = [[7, 8, 9, 9], [7, 9], [7, 5], [8, 5], [6, 5], [6, 9], [7, 6]]
LABELS = [0, 0, 0, 1, 1, 1, 2]


def z_score(token, label):
    """From the four counts of texts, by the definition."""
    inside = [token in row for row, one in zip(ROWS, LABELS, strict=True) if one == label]
    outside = [token in row for row, one in zip(ROWS, LABELS, strict=True) if one != label]
    a, b = sum(inside) + 0.5, len(inside) - sum(inside) + 0.5
    c, d = sum(outside) + 0.5, len(outside) - sum(outside) + 0.5
    return (math.log(a / b) - math.log(c / d)) / math.sqrt(1 / a + 1 / b + 1 / c + 1 / d)


def test_the_association_is_the_largest_z_score():
    found = label_association([np.array(row) for row in ROWS], np.array(LABELS), 12)
    for token in range(12):
        occurs = any(token in row for row in ROWS)
        want = max(abs(z_score(token, label)) for label in range(3)) if occurs else 0
        assert found[token] == pytest.approx(want, rel=1e-12), token
    ignored = label_association(
        [np.array(row) for row in [*ROWS, [11]]], np.array([*LABELS, -100]), 12
    )
    assert ignored == pytest.approx(found)


def test_flags_are_added_to_any_kind_of_training_set():
    """Twenty texts per label: token 10 goes with label 0, token 12 with neither."""
    rows = [{"input_ids": [0, 10 + y, 12, 2], "labels": y} for y in (0, 1) for _ in range(20)]
    for made in (rows, Dataset.from_list(rows)):
        flags = with_label_bearing(made, 20)[0]["label_bearing"]
        assert flags == [False, True, False, False]  # a token of every text bears nothing
    with pytest.raises(UsageError, match="a stream does not allow"):
        with_label_bearing(Dataset.from_list(rows).to_iterable_dataset(), 20)
    for unlabelled in ([{"input_ids": [1]}], [{"input_ids": [1], "labels": -100}]):
        with pytest.raises(UsageError, match="so the training set needs labels"):
            with_label_bearing(unlabelled, 20)


def batch_of(policy, rows, side="right", **options):
    tokenizer = tiny_tokenizer()
    tokenizer.padding_side = side
    method = MaskTuning(
        tiny_model("bert"), tokenizer, MaskTuningOptions(alpha=0.0, mask_policy=policy, **options)
    )
    padded = Batch.from_dict(PaddingCollator(tokenizer)(rows))
    return method.collate(padded, rows), method


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize(("policy", "wanted"), [("spare", False), ("aim", True)])
def test_as_many_tokens_are_masked_among_the_preferred_ones(policy, wanted, side):
    """The first row has enough preferred tokens, the second and third fall back on all."""
    rows = examples(3, 1)
    half = [[i % 2 == 0 for i in range(len(row["input_ids"]))] for row in rows]
    flags = [half[0], [not wanted] * len(half[1]), [not wanted] * len(half[2])]
    flagged = [{**row, "label_bearing": f} for row, f in zip(rows, flags, strict=True)]
    plain, _ = batch_of("random", rows, side, mask_rate=0.2)
    chosen, method = batch_of(policy, flagged, side, mask_rate=0.2)
    assert torch.equal(chosen.offsets, plain.offsets) and chosen.num_masked > 3
    assert torch.equal(chosen.maskable[1:], plain.maskable[1:])
    length = len(half[0])
    start = 0 if side == "right" else plain.input_ids.shape[1] - length
    for t in range(length):
        expected = bool(plain.maskable[0, start + t]) and half[0][t] == wanted
        assert bool(chosen.maskable[0, start + t]) == expected
    with pytest.raises(ValueError, match="needs the column 'label_bearing'"):
        method.collate(Batch.from_dict(PaddingCollator(method.tokenizer)(rows)), rows)
    short = [{**row, "label_bearing": [True]} for row in rows]
    with pytest.raises(ValueError, match="3 values for"):
        method.collate(Batch.from_dict(PaddingCollator(method.tokenizer)(short)), short)


@pytest.mark.parametrize("joint", [False, True])
def test_the_gate_keeps_what_the_classifier_still_labels(monkeypatch, joint):
    """The texts that are classified in training; the gate's own labels are without dropout.

    The gate reads the texts that were changed, and all of them where one backward pass serves both
    losses.
    """
    model, tokenizer = tiny_model("bert"), tiny_tokenizer()
    batch = MaskTuningCollator(tokenizer, mask_rate=0.04)(examples(12, 1))  # the short ones: none
    perturbed = MaskTuning(model, tokenizer, MaskTuningOptions(alpha=0.0)).perturb(
        Batch.from_dict(batch), torch.tensor([SEED, EPOCH])
    )
    mask = batch["attention_mask"]
    with torch.no_grad():
        given = model.eval()(perturbed, attention_mask=mask).logits.argmax(-1)
    # Half of the texts get the label that the classifier gives them, the others another one.
    batch["labels"] = torch.where(torch.arange(12) % 2 == 0, given, 1 - given)
    method = MaskTuning(model.train(), tokenizer, MaskTuningOptions(alpha=0.0, gate="label"))
    seen = []
    original = type(model).forward

    def recorded(self, input_ids, **texts):
        seen.append((input_ids, self.training))
        return original(self, input_ids, **texts)

    monkeypatch.setattr(type(model), "forward", recorded)
    counts = {"masked": torch.tensor(float(batch["num_masked"])), "labels": torch.tensor(12.0)}
    step = Step(torch.tensor([SEED, EPOCH]), counts, joint=joint)
    list(method.losses(Batch.from_dict(batch), step))
    kept = torch.arange(12) % 2 == 0
    pairs = zip(perturbed.tolist(), batch["input_ids"].tolist(), strict=True)
    changed = torch.tensor([ours != original for ours, original in pairs])
    assert 0 < int((changed & ~kept).sum()) < int(changed.sum()) < 12
    (asked, in_training), (classified, then_in_training) = seen
    assert torch.equal(asked, perturbed if joint else perturbed[changed]) and not in_training
    assert torch.equal(classified, torch.where(kept[:, None], perturbed, batch["input_ids"]))
    share = float((kept | ~changed).double().mean())  # all texts have labels
    assert float(step.logged["gate_kept_share"]) == pytest.approx(share)
    assert then_in_training and model.training


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"gate": "label", "alpha": 1.0}, "gate is label and alpha is 1"),
        ({"gate": "open"}, "gate is open: give none or label"),
        ({"mask_policy": "hide"}, "mask_policy is hide: give random or spare or aim or bernoulli"),
    ],
)
def test_what_makes_no_sense_is_told(options, told):
    with pytest.raises(ValueError, match=told):
        MaskTuningOptions(**options).check()
