"""Mask-tuning without the integrated loss: alpha = 0, or predictions by a frozen copy."""

import copy
import pickle

import pytest
import torch
import torch.nn.functional as F
from datasets import Dataset
from families import SPECIAL, examples, tiny_model, tiny_tokenizer
from oracles import counts_of, expected_masks
from stock_step import EPOCH, SEED, assert_same, expected_step, make_batch, run_step, stock_twins

from masktuning import MaskTuningTrainer
from masktuning.data.batch import Batch
from masktuning.methods.mask_tuning import MaskTuning
from masktuning.methods.mask_tuning_options import MaskTuningOptions
from masktuning.methods.no_integrated_loss import NoIntegratedLoss, NoIntegratedLossOptions
from masktuning.methods.step import Step
from masktuning.training.arguments import arguments_for
from masktuning.training.backward import backward_each
from masktuning.training.method_collator import MethodCollator


def method_around(model, generator="shared", **options):
    options = NoIntegratedLossOptions(mask_rate=0.2, generator=generator, **options)
    return NoIntegratedLoss(model.train(), tiny_tokenizer(), options)


def step_of(method, batch):
    """(loss, {name of the model's parameter: gradient}) of one step."""
    method.zero_grad()
    counts = {"masked": batch["num_masked"], "labels": len(batch["labels"])}
    step = Step(torch.tensor([SEED, EPOCH]), {k: torch.tensor(float(v)) for k, v in counts.items()})
    losses = method.losses(Batch.from_dict(batch), step)
    values = backward_each(method, method, losses, lambda loss, term: loss.backward())
    named = method.model.named_parameters()
    return float(sum(values.values())), {n: p.grad for n, p in named if p.grad is not None}


def drifted(model):
    """The model after an update that changes what its masked LM predicts."""
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return model


@pytest.mark.parametrize("family", ["bert", "roberta", "distilbert"])
def test_shared_is_mask_tuning_with_alpha_0_to_the_bit(family):
    model, batch = tiny_model(family), make_batch()
    loss, gradients = step_of(method_around(model), batch)
    gradients = {name: gradient.clone() for name, gradient in gradients.items()}
    expected_loss, expected = run_step(model, batch, 0.0)
    assert loss == expected_loss and gradients.keys() == expected.keys()
    assert all(torch.equal(gradients[name], expected[name]) for name in expected)
    assert_same((loss, gradients), expected_step(model, batch, 0.0))


@pytest.mark.parametrize("family", ["bert", "roberta", "distilbert"])
def test_frozen_predictions_are_those_of_the_first_weights(family):
    """Loss and gradients from stock float64 models: an old masked LM, a new classifier."""
    model, batch = tiny_model(family), make_batch()
    method = method_around(model, "frozen")
    _, vanilla = stock_twins(model)
    ours = step_of(method_around(drifted(model), "shared"), batch)
    frozen_loss, gradients = step_of(method, batch)
    assert frozen_loss != ours[0]

    input_ids = batch["input_ids"]
    maskable = ~torch.isin(input_ids, torch.tensor([*SPECIAL.values()]))
    counts = counts_of(maskable, 0.2)
    shown, positions, _ = expected_masks(
        input_ids, maskable, batch["example_ids"], counts, SEED, EPOCH
    )
    extras = {"attention_mask": batch["attention_mask"]}
    with torch.no_grad():
        logits = vanilla(input_ids=shown, **extras).logits.flatten(0, 1)[positions]
    banned = torch.tensor([i for i in SPECIAL.values() if i != SPECIAL["<unk>"]])
    perturbed = input_ids.clone()
    perturbed.view(-1)[positions] = logits.index_fill(1, banned, -torch.inf).argmax(1)
    classifier, _ = stock_twins(model)
    loss = F.cross_entropy(classifier(input_ids=perturbed, **extras).logits, batch["labels"])
    loss.backward()
    named = {f"classifier.{name}": p.grad for name, p in classifier.named_parameters()}
    expected = {name: gradient for name, gradient in named.items() if gradient is not None}
    assert_same((frozen_loss, gradients), (float(loss.detach()), expected))


def test_before_any_update_both_generators_are_the_same_without_dropout():
    model, batch = tiny_model("bert"), make_batch()
    shared = step_of(method_around(model, "shared"), batch)[0]
    assert step_of(method_around(model, "frozen"), batch)[0] == shared


def test_nobody_sees_the_frozen_copy(tmp_path):
    model = tiny_model("bert")
    own = {id(p) for p in model.parameters()}
    names = set(model.state_dict())
    method = method_around(model, "frozen")
    assert {id(p) for p in method.parameters()} == own
    assert {name.removeprefix("model.") for name in method.state_dict()} == names
    method.save_pretrained(tmp_path)
    assert not (tmp_path / "method").exists() and (tmp_path / "mlm_head").is_dir()
    trained = {name for name, p in method.named_parameters() if p.requires_grad}
    assert all(name.startswith("model.classifier.") for name in trained)
    assert {name.removeprefix("model.") for name in trained} == {
        f"classifier.{name}" for name, _ in model.classifier.named_parameters()
    }


def test_the_copy_stays_behind_where_the_method_is_pickled():
    method = method_around(tiny_model("bert"), "frozen")
    size = len(pickle.dumps(MethodCollator(dict, method)))
    assert size - len(pickle.dumps(MethodCollator(dict, method_around(tiny_model("bert"))))) < 2000


def trainer_of(folder, **settings):
    args = arguments_for("no_integrated_loss")(
        str(folder),
        generator="frozen",
        max_steps=4,
        save_steps=2,
        learning_rate=1e-2,
        per_device_train_batch_size=4,
        report_to="none",
        disable_tqdm=True,
        use_cpu=True,
        **settings,
    )
    return MaskTuningTrainer(
        model=tiny_model("bert"),
        args=args,
        train_dataset=Dataset.from_list(examples(16, 3)),
        processing_class=tiny_tokenizer(),
    )


def test_a_resumed_run_has_the_copy_of_the_first_weights(tmp_path):
    trainer = trainer_of(tmp_path, mask_rate=0.2)
    trainer.train()
    kept = {name: tensor.clone() for name, tensor in trainer.method.state_dict().items()}
    again = trainer_of(tmp_path, mask_rate=0.2)
    again.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    for name, tensor in again.method.state_dict().items():
        assert torch.equal(tensor, kept[name]), name
    batch = Batch.from_dict(make_batch())
    rng = torch.tensor([SEED, EPOCH])
    vanilla = MaskTuning(
        tiny_model("bert").eval(), tiny_tokenizer(), MaskTuningOptions(0.0, mask_rate=0.2)
    )
    found = again.method.eval().perturb(batch, rng)
    assert torch.equal(found, vanilla.perturb(batch, rng))
    trained = MaskTuning(again.method.model, tiny_tokenizer(), vanilla.options)
    assert not torch.equal(found, trained.perturb(copy.copy(batch), rng))


def test_an_unknown_generator_is_one_line():
    with pytest.raises(ValueError, match="generator is thawed: give shared or frozen") as caught:
        NoIntegratedLossOptions(generator="thawed").check()
    assert "\n" not in str(caught.value)
    with pytest.raises(ValueError, match=r"mask_rate is 0\.0: give a share above 0"):
        NoIntegratedLossOptions(mask_rate=0.0).check()
