"""The training step by the book: stock float64 models of the same weights, full logits.

The masked LM scores every position and is read at the masked ones, the classifier reads its
argmax. A parameter they share gets the sum of its two gradients.
"""

import pytest
import torch
import torch.nn.functional as F
from families import SPECIAL, examples, tiny_tokenizer
from oracles import MASK, counts_of, expected_masks
from transformers import AutoModelForMaskedLM, AutoModelForSequenceClassification

from masktuning.data.batch import Batch
from masktuning.data.collator import MaskTuningCollator
from masktuning.methods.mask_tuning import MaskTuning
from masktuning.methods.mask_tuning_options import MaskTuningOptions
from masktuning.methods.step import Step
from masktuning.training.backward import backward_each, backward_joint

SEED, EPOCH = 77, 3


def make_batch(count=6, pair=False):
    return MaskTuningCollator(tiny_tokenizer(), mask_rate=0.2)(examples(count, 1, pair))


def run_step(model, batch, alpha, apart=True, counts=None, **options):
    """(loss, {name: gradient}) of our step; with one joint backward pass unless `apart`."""
    model.zero_grad()
    method = MaskTuning(model.train(), tiny_tokenizer(), MaskTuningOptions(alpha, **options))
    counts = counts or [batch["num_masked"], len(batch["labels"])]
    named = dict(zip(("masked", "labels"), torch.tensor(counts).float().unbind(), strict=True))
    step = Step(torch.tensor([SEED, EPOCH]), named, joint=not apart)
    losses = method.losses(Batch.from_dict(batch), step)

    def backward(loss, term):
        loss.backward()

    backward_all = backward_each if apart else backward_joint
    loss = sum(backward_all(method, method, losses, backward).values())
    gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    return float(loss), gradients


def stock_twins(model, dtype=torch.float64):
    """A stock classifier and a stock masked LM with the model's weights."""
    classifier = AutoModelForSequenceClassification.from_config(model.config).to(dtype).train()
    classifier.load_state_dict(model.classifier.state_dict())
    mlm = AutoModelForMaskedLM.from_config(model.config).to(dtype).train()
    getattr(mlm, mlm.base_model_prefix).load_state_dict(model.encoder.state_dict(), strict=False)
    mlm.load_state_dict(model.mlm_head.mlm.state_dict(), strict=False)
    return classifier, mlm


def expected_step(
    model, batch, alpha, include_original=False, dtype=torch.float64, epoch=EPOCH, weights=None
):
    """(loss, {name: gradient}) of Eq. (1), from the stock twins; `weights` are those of classes."""
    classifier, mlm = stock_twins(model, dtype)
    input_ids, labels = batch["input_ids"], batch["labels"]
    special = torch.tensor(list(SPECIAL.values()))
    maskable = ~torch.isin(input_ids, special)
    counts = counts_of(maskable, 0.2)
    shown, positions, targets = expected_masks(
        input_ids, maskable, batch["example_ids"], counts, SEED, epoch
    )
    extras = {"attention_mask": batch.get("attention_mask", torch.ones_like(input_ids))}
    if "token_type_ids" in batch:
        extras["token_type_ids"] = batch["token_type_ids"]
    decoder = {}
    if model.config.is_encoder_decoder:
        start = torch.full((len(input_ids), 1), model.config.decoder_start_token_id)
        decoder["decoder_input_ids"] = torch.cat([start, input_ids[:, :-1]], 1)
    logits = mlm(input_ids=shown, **extras, **decoder).logits.flatten(0, 1)[positions]
    mlm_loss = F.cross_entropy(logits, torch.tensor(targets))
    banned = torch.tensor([i for i in SPECIAL.values() if i != SPECIAL["<unk>"]])
    best, tokens = logits.detach().index_fill(1, banned, -torch.inf).topk(2)
    # In float32 a near tie could fall either way; these models and texts must hold none.
    assert float((best[:, 0] - best[:, 1]).min()) > 1e-5
    perturbed = input_ids.clone()
    perturbed.view(-1)[positions] = tokens[:, 0]
    assert int((perturbed == MASK).sum()) == 0

    def classification(ids):
        logits = classifier(input_ids=ids, **extras).logits
        if weights is None:
            return F.cross_entropy(logits, labels)
        w_B = torch.tensor([weights[label] for label in labels.tolist()])
        rows_B = -logits.softmax(-1)[torch.arange(len(labels)), labels].log()
        return (w_B * rows_B).sum() / w_B.sum()

    class_loss = classification(perturbed)
    if include_original:
        class_loss = (class_loss + classification(input_ids)) / 2
    loss = alpha * mlm_loss + (1 - alpha) * class_loss
    loss.backward()
    gradients = {f"classifier.{n}": p.grad for n, p in classifier.named_parameters()}
    encoder = f"{mlm.base_model_prefix}."
    seen = set()
    # A tied parameter has several names; the encoder's comes first.
    names = sorted(
        mlm.named_parameters(remove_duplicate=False),
        key=lambda item: not item[0].startswith(encoder),
    )
    for name, p in names:
        if p.grad is None or p in seen:
            continue
        seen.add(p)
        shared = f"classifier.{classifier.base_model_prefix}.{name.removeprefix(encoder)}"
        if name.startswith(encoder):
            known = gradients[shared]
            gradients[shared] = p.grad if known is None else known + p.grad
        else:
            gradients[f"mlm_head.mlm.{name}"] = p.grad
    return float(loss.detach()), {n: g for n, g in gradients.items() if g is not None}


def assert_same(ours, expected, tolerance=1e-5):
    (loss, gradients), (expected_loss, expected_gradients) = ours, expected
    assert loss == pytest.approx(expected_loss, rel=tolerance)
    scale = max(float(g.norm()) for g in expected_gradients.values())
    for name in expected_gradients.keys() | gradients.keys():
        want = expected_gradients.get(name)
        have = gradients.get(name)
        if want is None or have is None:  # no gradient on one side: none to speak of on the other
            rest = have if want is None else want
            assert float(rest.norm()) < tolerance * scale, name
            continue
        # A key bias shifts every score of a row alike: its gradient is zero but for rounding.
        error = float((have.double() - want).norm())
        assert error < tolerance * max(float(want.norm()), 1e-3 * scale), name
