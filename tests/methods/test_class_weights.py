"""Weights of classes: PyTorch's weighted cross-entropy over the whole step, with every method."""

import numpy as np
import pytest
import test_cutoff
import torch
from datasets import Dataset
from families import examples, tiny_model, tiny_tokenizer
from stock_step import expected_step, stock_twins

from masktuning import MaskTuningTrainer
from masktuning.methods.bias.method import COLUMN
from masktuning.methods.cutoff import CutoffOptions
from masktuning.methods.step import WEIGHTS, Step, weight_of_labels
from masktuning.training.arguments import arguments_for

SEED = 77
GIVEN = [0.5, 3.0]
ROWS = examples(12, 1)
for i, row in enumerate(ROWS):
    row[COLUMN] = np.log([0.2 + 0.05 * i, 0.8 - 0.05 * i]).tolist()


def trainer_of(folder, method="finetuning", rows=ROWS, model=None, **options):
    settings = {
        "class_weights": GIVEN,
        "max_steps": 1,
        "logging_steps": 1,
        "learning_rate": 0.5,
        "optim": "sgd",
        "max_grad_norm": 0.0,
        "seed": SEED,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "use_cpu": True,
        "per_device_train_batch_size": 12,
        **options,
    }
    return MaskTuningTrainer(
        model=tiny_model("bert") if model is None else model,
        args=arguments_for(method)(str(folder), **settings),
        train_dataset=Dataset.from_list(rows) if isinstance(rows, list) else rows,
        processing_class=tiny_tokenizer(),
    )


def trained(trainer):
    """The loss of the step, and all weights after it."""
    trainer.train()
    weights = torch.cat([p.detach().flatten() for p in trainer.model.parameters()])
    return trainer.state.log_history[0]["loss"], weights


def by_the_equation(method, model, batch):
    """The loss of the first step, in float64 on the stock classifier."""
    if method == "mask_tuning":
        return expected_step(model, batch, 0.6, epoch=0, weights=GIVEN)[0]
    if method == "cutoff":
        return test_cutoff.expected_step(model, batch, CutoffOptions(), 0, GIVEN)[0]
    classifier, _ = stock_twins(model)
    with torch.no_grad():
        p = classifier(batch["input_ids"], batch["attention_mask"]).logits.softmax(-1)
    if method == "bias_product":
        p = p * batch[COLUMN].double().exp()
        p = p / p.sum(-1, keepdim=True)
    labels = batch["labels"].tolist()
    total = sum(-GIVEN[label] * float(p[b, label].log()) for b, label in enumerate(labels))
    return total / sum(GIVEN[label] for label in labels)


OPTIONS = {"mask_tuning": {"mask_rate": 0.2, "alpha": 0.6}}


@pytest.mark.parametrize("method", ["mask_tuning", "finetuning", "cutoff", "bias_product"])
def test_a_step_is_the_equation_s_and_accumulation_changes_nothing(tmp_path, method):
    options = OPTIONS.get(method, {})
    trainer = trainer_of(tmp_path, method, **options)
    expected = by_the_equation(method, trainer.method.model, trainer.collate(ROWS))
    loss, weights = trained(trainer)
    assert loss == pytest.approx(expected, rel=1e-5)
    sizes = {"per_device_train_batch_size": 3, "gradient_accumulation_steps": 4}
    again, parts = trained(trainer_of(tmp_path, method, **sizes, **options))
    assert again == pytest.approx(expected, rel=1e-5)
    np.testing.assert_allclose(parts, weights, rtol=1e-5, atol=1e-6)
    plain = trained(trainer_of(tmp_path, method, class_weights=None, **options))[0]
    assert abs(plain - expected) > 1e-3  # so the weights do matter here


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("copies", [1, 2])
def test_parts_of_a_step_add_up_to_pytorch_s_mean(smoothing, copies):
    """In micro-batches of unequal weight, one of which has ignored labels only."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(9, 3, generator=generator, dtype=torch.float64, requires_grad=True)
    labels = torch.tensor([0, 2, -100, 1, 1, 2, 0, -100, -100])
    weights = torch.tensor([0.2, 1.0, 3.5], dtype=torch.float64)
    wanted = torch.nn.functional.cross_entropy(
        logits, labels, weights, label_smoothing=smoothing, reduction="mean"
    )
    (gradient,) = torch.autograd.grad(wanted, logits)
    count = 0.2 + 3.5 + 1.0 + 1.0 + 3.5 + 0.2
    assert float(weight_of_labels(labels, weights)) == pytest.approx(count)
    counts = {name: torch.tensor(c) for name, c in {WEIGHTS: count, "masked": 4.0}.items()}
    total, mlm = 0.0, 0.0
    for rows in (slice(0, 2), slice(2, 7), slice(7, 9)):
        step = Step(torch.tensor([0, 0]), counts, smoothing, class_weights=weights)
        shown = torch.cat([logits[rows]] * copies)
        losses = torch.tensor([2.0, 4.0])
        dual = step.joint_loss(losses, shown, torch.cat([labels[rows]] * copies), 0.25, copies)
        loss, of_mlm, of_classes = (float(term.detach()) for term in dual)
        assert loss == pytest.approx(0.25 * of_mlm + 0.75 * of_classes)
        total, mlm = total + dual.classification, mlm + of_mlm
        if copies == 1:
            alone = step.cross_entropy(shown, labels[rows])
            assert float(alone.detach()) == pytest.approx(of_classes, rel=1e-12)
    assert mlm == 3 * 6 / 4
    torch.testing.assert_close(total, wanted, rtol=1e-6, atol=0)
    torch.testing.assert_close(torch.autograd.grad(total, logits)[0], gradient, rtol=1e-6, atol=0)


def test_balanced_is_counted_on_the_training_set(tmp_path):
    """n / (C * n_c); also of what is set after construction, and of a list of rows."""
    labels = [1, 0, 1, 1, -100, 1, 0, 1]
    rows = [{**row, "labels": label} for row, label in zip(ROWS, labels, strict=False)]
    trainer = trainer_of(tmp_path, rows=rows, class_weights="balanced")
    assert trainer._counts.class_weights.tolist() == [7 / (2 * 2), 7 / (2 * 5)]
    trainer.args.class_weights = "1,4"
    trainer.get_train_dataloader()
    assert trainer._counts.class_weights.tolist() == [1, 4]

    class Rows(torch.utils.data.Dataset):
        def __len__(self):
            return 3

        def __getitem__(self, i):
            return {"input_ids": [0, 9, 2], "label": (0, 1, 1)[i]}

    trainer = trainer_of(tmp_path, rows=Rows(), class_weights="balanced")
    assert trainer._counts.class_weights.tolist() == [3 / 2, 3 / 4]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("heavy", "class_weights is 'heavy': give balanced, or for each label a number"),
        ([1.0, -1.0], "class_weights is '1.0,-1.0'"),
        ([0, 0], "and not 0 for all of them"),
        ([1, float("inf")], "class_weights is '1,inf'"),
        ([1, 2, 3], "3 numbers, but there are 2 labels: give one for each of LABEL_0, LABEL_1"),
        ("balanced", "no example of LABEL_1; give a number for each label"),
    ],
)
def test_what_cannot_be_used_is_told_before_training(tmp_path, given, message):
    rows = [row for row in ROWS if row["labels"] == 0]
    with pytest.raises(ValueError, match=message):
        trainer_of(tmp_path, rows=rows, class_weights=given)
