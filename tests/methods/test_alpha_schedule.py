"""Schedules of alpha: their values, the step that they weigh, and the run that they follow."""

import math

import pytest
import torch
from datasets import Dataset
from families import examples, tiny_model, tiny_tokenizer
from stock_step import EPOCH, SEED, assert_same, expected_step, make_batch

from masktuning import MaskTuningArguments, MaskTuningTrainer
from masktuning.data.batch import Batch
from masktuning.methods.alpha_schedule import scheduled
from masktuning.methods.mask_tuning import MaskTuning
from masktuning.methods.mask_tuning_options import MaskTuningOptions
from masktuning.methods.step import Step
from masktuning.training.backward import backward_each


@pytest.mark.parametrize(
    ("schedule", "values"),
    [
        ("constant", [0.6, 0.6, 0.6, 0.6, 0.6]),
        ("linear", [0.6, 0.57, 0.54, 0.3, 0.06]),
        ("cosine", [0.6 * (1 + math.cos(math.pi * p)) / 2 for p in (0, 0.05, 0.1, 0.5, 0.9)]),
        ("warmup", [0.0, 0.3, 0.6, 0.6, 0.6]),
    ],
)
def test_the_values(schedule, values):
    found = [scheduled(schedule, 0.6, p) for p in (0.0, 0.05, 0.1, 0.5, 0.9)]
    assert found == pytest.approx(values, rel=1e-12)


@pytest.mark.parametrize(("schedule", "progress"), [("linear", 0.25), ("warmup", 0.0)])
def test_the_step_is_that_of_its_alpha(schedule, progress):
    model, batch = tiny_model("bert"), make_batch()
    options = MaskTuningOptions(0.8, alpha_schedule=schedule)
    method = MaskTuning(model.train(), tiny_tokenizer(), options)
    counts = {"masked": batch["num_masked"], "labels": len(batch["labels"])}
    counts = {name: torch.tensor(float(count)) for name, count in counts.items()}
    step = Step(torch.tensor([SEED, EPOCH]), counts, progress=progress)
    losses = method.losses(Batch.from_dict(batch), step)
    values = backward_each(method, method, losses, lambda loss, _: loss.backward())
    gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    alpha = {"linear": 0.6, "warmup": 0.0}[schedule]
    assert float(step.logged["alpha"]) == pytest.approx(alpha, abs=1e-7)
    assert_same((float(sum(values.values())), gradients), expected_step(model, batch, alpha))


def alphas(folder, resume=None, **settings):
    trainer = MaskTuningTrainer(
        model=tiny_model("bert"),
        args=MaskTuningArguments(
            str(folder),
            alpha=0.8,
            alpha_schedule="linear",
            mask_rate=0.2,
            logging_steps=1,
            report_to="none",
            disable_tqdm=True,
            use_cpu=True,
            **{"max_steps": 4, "per_device_train_batch_size": 4, **settings},
        ),
        train_dataset=Dataset.from_list(examples(16, 1)),
        processing_class=tiny_tokenizer(),
    )
    trainer.train(resume_from_checkpoint=resume)
    weights = torch.cat([p.detach().flatten() for p in trainer.model.parameters()])
    return [log["alpha"] for log in trainer.state.log_history if "alpha" in log], weights


def test_the_schedule_follows_the_steps_of_the_run(tmp_path):
    """Also after a resume, and however many micro-batches a step has."""
    saves = {"save_strategy": "steps", "save_steps": 2}
    whole, weights = alphas(tmp_path / "run", **saves)
    assert whole == pytest.approx([0.8, 0.6, 0.4, 0.2], rel=1e-6)
    resumed, same = alphas(tmp_path / "run", str(tmp_path / "run" / "checkpoint-2"), **saves)
    assert resumed == whole and torch.equal(same, weights)
    parts = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2}
    several, near = alphas(tmp_path / "parts", save_strategy="no", **parts)
    assert several == pytest.approx(whole, rel=1e-6)
    torch.testing.assert_close(near, weights, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"alpha": 0.5, "alpha_schedule": "step"}, "alpha_schedule is step: give constant or"),
        ({"alpha_schedule": "linear"}, "alpha_schedule is linear and alpha is auto"),
    ],
)
def test_what_makes_no_sense_is_told(options, told):
    with pytest.raises(ValueError, match=told):
        MaskTuningOptions(**options).check()


def test_a_classifier_that_is_trained_later_may_gate():
    MaskTuningOptions(1.0, alpha_schedule="linear", gate="label").check()
