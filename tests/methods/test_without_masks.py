"""A batch in which no token is masked is trained on as it is, in one forward pass."""

import pytest
import torch
import torch.nn.functional as F
from families import examples, tiny_model, tiny_tokenizer
from stock_step import assert_same, make_batch, run_step, stock_twins

from masktuning.data.batch import Batch
from masktuning.data.collator import MaskTuningCollator
from masktuning.methods.mask_tuning import MaskTuning
from masktuning.methods.mask_tuning_options import MaskTuningOptions
from masktuning.methods.step import Step

ALPHA = 0.3


def batch_without_masks():
    """Texts of fewer than 20 words and special tokens, and a rate that masks none of these."""
    return MaskTuningCollator(tiny_tokenizer(), mask_rate=0.01)(examples(6, 1))


def expected(model, batch):
    """(1 - alpha) * CE(f(x), y) and its gradients, in float64."""
    classifier, _ = stock_twins(model)
    texts = {"input_ids": batch["input_ids"], "attention_mask": batch["attention_mask"]}
    loss = (1 - ALPHA) * F.cross_entropy(classifier(**texts).logits, batch["labels"])
    loss.backward()
    named = classifier.named_parameters()
    return float(loss.detach()), {f"classifier.{n}": p.grad for n, p in named if p.grad is not None}


@pytest.mark.parametrize(("apart", "passes"), [(True, 1), (False, 2)], ids=["apart", "joint"])
def test_the_first_pass_is_skipped(apart, passes):
    """Unless one backward pass serves both losses, where DDP waits for the head's gradient."""
    model, batch = tiny_model("bert"), batch_without_masks()
    assert batch["num_masked"] == 0
    calls = []
    handle = model.encoder.register_forward_hook(lambda *_: calls.append(1))
    ours = run_step(model, batch, ALPHA, apart)
    handle.remove()
    assert len(calls) == passes
    assert_same(ours, expected(model, batch))


def test_the_head_gets_a_gradient_of_zero():
    """An optimizer decays the weights of what has one, and passes over what has none."""
    model = tiny_model("bert")
    head = dict(model.mlm_head.named_parameters())
    shared = {id(p) for p in model.classifier.parameters()}
    own = [n for n, p in head.items() if id(p) not in shared]
    run_step(model, batch_without_masks(), ALPHA)
    assert own and all(head[n].grad is not None and not head[n].grad.any() for n in own)


@pytest.mark.parametrize("alpha", [0.0, ALPHA, "auto"])
@pytest.mark.parametrize("perturbation", ["mlm", "random"])
def test_the_log_has_the_same_names_as_with_masks(alpha, perturbation):
    model, logged = tiny_model("bert"), []
    options = MaskTuningOptions(alpha, perturbation=perturbation)
    for batch in (batch_without_masks(), make_batch()):
        method = MaskTuning(model, tiny_tokenizer(), options)
        counts = {"masked": torch.tensor(float(batch["num_masked"])), "labels": torch.tensor(6.0)}
        step = Step(torch.tensor([1, 0]), counts)
        list(method.losses(Batch.from_dict(batch), step))
        logged.append([*step.logged])
    assert logged[0] == logged[1]


@pytest.mark.parametrize("perturbation", ["mlm", "random"])
def test_nothing_is_perturbed(perturbation):
    model, batch = tiny_model("bert"), batch_without_masks()
    seen = []
    handle = model.register_forward_hook(
        lambda module, args, kwargs, output: seen.append(args[0]), with_kwargs=True
    )
    run_step(model, batch, ALPHA, perturbation=perturbation)
    handle.remove()
    assert len(seen) == 1 and torch.equal(seen[0], batch["input_ids"])
