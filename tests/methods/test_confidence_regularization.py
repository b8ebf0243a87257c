"""Confidence regularization against its equation in float64, its teacher, and a whole run."""

import importlib.util
import json

import pytest
import torch
from debiasing import (
    BIAS,
    FAMILIES,
    LABELS,
    NLI,
    PAIRS,
    Stock,
    batch_of,
    method_of,
    rows_of,
    step_of,
)
from families import save_tiny, tiny_model
from safetensors.torch import load_file
from stock_step import assert_same, stock_twins
from transformers import AutoModelForSequenceClassification

from masktuning.config.errors import UsageError
from masktuning.demo import EMBEDDED
from masktuning.methods.base import Stage
from masktuning.methods.bias import teacher
from masktuning.methods.bias.method import COLUMN
from masktuning.methods.confidence_regularization import (
    TEACHER_COLUMN,
    ConfidenceRegularization,
)
from masktuning.training.job import read_job
from masktuning.training.run import run

TEACHER = [[0.8, 0.1, 0.1], [0.25, 0.25, 0.5], [0.9, 0.06, 0.04], [0.3, 0.3, 0.4]]


def rows_with_teacher(method, bias=BIAS, labels=LABELS):
    logs = torch.tensor(TEACHER, dtype=torch.float64).log().tolist()
    rows = rows_of(method, bias=bias, labels=labels)
    return [{**row, TEACHER_COLUMN: log} for row, log in zip(rows, logs, strict=True)]


def expected_loss(stock, betas):
    """The equation, example by example."""
    total = 0
    for i, beta in enumerate(betas):
        powers = [t ** (1 - beta) for t in TEACHER[i]]
        log_f = stock.logits[i].log_softmax(-1)
        total = total - sum(power / sum(powers) * log_f[k] for k, power in enumerate(powers))
    return total / len(betas)


@pytest.mark.parametrize("family", FAMILIES)
def test_loss_and_gradients(family):
    method = method_of(ConfidenceRegularization, family)
    batch = batch_of(method, rows_with_teacher(method))
    loss, gradients, step = step_of(method, batch)
    stock = Stock(method, batch)
    betas = [0.7, 0.3, 0.98, 0.3]
    expected = expected_loss(stock, betas)
    assert_same((loss, gradients), (float(expected.detach()), stock.gradients(expected)))
    assert float(step.logged["bias_confidence"]) == pytest.approx(sum(betas) / 4, rel=1e-5)


def test_no_bias_is_plain_distillation():
    method = method_of(ConfidenceRegularization)
    wrong = [[1e-30 if k == label else 0.5 for k in range(3)] for label in LABELS]
    batch = batch_of(method, rows_with_teacher(method, bias=wrong))
    log_f = Stock(method, batch).logits.detach().log_softmax(-1)
    distillation = -(torch.tensor(TEACHER) * log_f).sum(-1).mean()
    assert step_of(method, batch)[0] == pytest.approx(float(distillation), rel=1e-5)


def test_a_certain_bias_asks_for_no_opinion():
    method = method_of(ConfidenceRegularization)
    sure = [[1.0 if k == label else 1e-30 for k in range(3)] for label in LABELS]
    batch = batch_of(method, rows_with_teacher(method, bias=sure))
    even = -Stock(method, batch).logits.detach().log_softmax(-1).mean()
    assert step_of(method, batch)[0] == pytest.approx(float(even), rel=1e-5)


def test_an_example_without_a_label_is_ignored():
    method = method_of(ConfidenceRegularization)
    rows = rows_with_teacher(method)
    without = [{**row, "labels": -100} if i == 2 else row for i, row in enumerate(rows)]
    three = step_of(method, batch_of(method, [*rows[:2], rows[3]]))[0]
    assert step_of(method, batch_of(method, without))[0] == pytest.approx(three, rel=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_teacher_s_predictions_are_its_checkpoint_s(family, tmp_path, monkeypatch):
    method = method_of(ConfidenceRegularization, family)
    source = tiny_model(family, seed=5, num_labels=3, id2label=dict(NLI))
    source.save_pretrained(tmp_path / "teacher")
    rows = rows_of(method)
    monkeypatch.setattr(teacher, "_BATCH", 3)
    prepared = method.prepare(rows, tmp_path)
    classifier = stock_twins(source)[0].eval()
    for i, row in enumerate(rows):
        names = ("input_ids", "token_type_ids")
        inputs = {name: torch.tensor([row[name]]) for name in names if name in row}
        expected = classifier(**inputs).logits[0].log_softmax(-1)
        assert prepared[i][TEACHER_COLUMN] == pytest.approx(expected.tolist(), rel=1e-4, abs=1e-5)
    (kept,) = tmp_path.glob("predictions-teacher-*.safetensors")
    monkeypatch.setattr(teacher, "_predicted", None)  # it would be called for another teacher
    again = method.prepare(rows, tmp_path)
    assert again[3][TEACHER_COLUMN] == prepared[3][TEACHER_COLUMN]
    tiny_model(family, seed=6, num_labels=3).save_pretrained(tmp_path / "teacher")
    with pytest.raises(TypeError, match="not callable"):
        method.prepare(rows, tmp_path)
    assert [*tmp_path.glob("predictions-*")] == [kept]


def test_what_is_missing_is_one_line(tmp_path):
    method = method_of(ConfidenceRegularization)
    with pytest.raises(UsageError, match=r"teacher holds no teacher: .* and save the model there$"):
        method.prepare(rows_of(method), tmp_path)
    with pytest.raises(UsageError, match="--bias_file is missing"):
        method.prepare(rows_of(method, bias=None), tmp_path)
    with pytest.raises(UsageError, match="--bias_file is missing"):
        ConfidenceRegularization.check_task(method.options, True, ["a", "b"])
    assert method.stages(method.options) == [Stage("teacher", "finetuning")]
    rows = rows_with_teacher(method)
    assert method.prepare(rows, None) is rows and COLUMN in rows[0]


@pytest.mark.skipif(importlib.util.find_spec("sklearn") is None, reason="needs the extra `bias`")
def test_a_run_trains_its_teacher_first(tmp_path, monkeypatch, capsys):
    """The stage, the bias model and both caches, which are used again after a stop."""
    save_tiny(tmp_path / "model", "bert")
    for name in ("train", "dev"):
        lines = [f"{p},{h},{i % 2}" for i in range(6) for p, h in PAIRS]
        text = "\n".join(["sentence1,sentence2,label", *lines]) + "\n"
        (tmp_path / f"{name}.csv").write_text(text)
    monkeypatch.chdir(tmp_path)
    words = "--method confidence_regularization --bias_model overlap --max_steps 2 --save_steps 1 "
    words += "--model_name_or_path model --train_file train.csv --validation_file dev.csv "
    words += "--use_cpu true --logging_steps 1 --disable_tqdm true --output_dir out "
    words += "--report_to none --keep_optimizer_states"

    run(read_job(words.split(), EMBEDDED), summary=False)
    assert "finetuning, into out/stages/teacher" in capsys.readouterr().out
    out = tmp_path / "out"
    kept = sorted(path.name for path in (out / "stages").glob("*.safetensors"))
    assert [name.rpartition("-")[0] for name in kept] == ["bias-overlap", "predictions-teacher"]
    logs = json.loads((out / "trainer_state.json").read_text())["log_history"]
    assert logs[0]["loss"] == pytest.approx(logs[0]["loss_distillation"], rel=1e-5)
    assert 0 < logs[0]["bias_confidence"] < 1
    weights = load_file(out / "model.safetensors")
    again = f"{words} --resume_from_checkpoint out/checkpoint-1"
    monkeypatch.setattr(teacher, "_predicted", None)  # what is kept is read
    run(read_job(again.split(), EMBEDDED), summary=False)
    assert "stage of" not in capsys.readouterr().out
    found = load_file(out / "model.safetensors")
    assert all(torch.equal(found[name], weights[name]) for name in weights)
    assert AutoModelForSequenceClassification.from_pretrained(out).config.num_labels == 2
