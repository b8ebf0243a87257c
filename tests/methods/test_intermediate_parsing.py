"""Intermediate parsing: a stage that learns parsing, and a run that starts from its encoder."""

import json
import logging

import pytest
import torch
import yaml
from families import examples, save_tiny, tiny_model, tiny_tokenizer
from safetensors.torch import load_file
from transformers import AutoModelForSequenceClassification
from treebanks import write_treebank

from masktuning.config.errors import UsageError
from masktuning.data.batch import Batch
from masktuning.data.collator import PaddingCollator
from masktuning.demo import EMBEDDED
from masktuning.methods.dependency_parsing import DependencyParsing
from masktuning.methods.intermediate_parsing import (
    IntermediateParsing,
    IntermediateParsingOptions,
)
from masktuning.methods.step import Step
from masktuning.training.build import build_trainer
from masktuning.training.job import read_job
from masktuning.training.run import run
from masktuning.training.stages import pending_stages, started


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A tiny encoder, two files of texts and two treebanks."""
    folder = tmp_path_factory.mktemp("parsing")
    save_tiny(folder / "model", "roberta")
    for name in ("train", "dev"):
        rows = [f"w{7 * i % 80} w{i % 11},{7 * i % 80 % 2}" for i in range(24)]
        (folder / f"{name}.csv").write_text("\n".join(["text,label", *rows]) + "\n")
    write_treebank(folder / "train.conllu", 16)
    write_treebank(folder / "dev.conllu", 12)
    return folder


def words_of(files, out, **options):
    usual = {
        "method": "intermediate_parsing",
        "model_name_or_path": files / "model",
        "train_file": files / "train.csv",
        "validation_file": files / "dev.csv",
        "treebank": files / "train.conllu",
        "output_dir": out,
        "max_steps": 2,
        "learning_rate": 3e-3,
        "seed": 7,
        "use_cpu": "true",
        "report_to": "none",
        "disable_tqdm": "true",
    }
    given = {**usual, **options}
    return [word for name, value in given.items() for word in (f"--{name}", str(value))]


def job_of(files, out, **options):
    return read_job(words_of(files, out, **options), EMBEDDED)


def encoder_of(state, prefix="roberta."):
    return {name: tensor for name, tensor in state.items() if name.startswith(prefix)}


def test_the_run_starts_from_the_encoder_that_learned_parsing(files, tmp_path, capsys):
    out = tmp_path / "out"
    options = {
        "dev_treebank": files / "dev.conllu",
        "parsing_epochs": 40,
        "parsing_eval_steps": 2,
        "parsing_patience": 2,
        "class_weights": "balanced",  # of the task's labels, which the treebank does not have
        "metric_for_best_model": "accuracy",
        "load_best_model_at_end": "true",
    }
    run(job_of(files, out, **options))
    stage = out / "stages" / "parsing"
    printed = capsys.readouterr().out
    assert "stage of intermediate_parsing: dependency_parsing, into" in printed
    assert f"{files / 'dev.conllu'}: UAS 100.00 %, LAS 100.00 %" in printed

    results = json.loads((stage / "all_results.json").read_text())
    assert (results["eval_uas"], results["train_samples"]) == (1.0, 16)
    assert "eval_dev_accuracy" not in results  # its classifier has learned nothing yet
    state = json.loads((stage / "trainer_state.json").read_text())
    found = [(log["step"], log["eval_uas"]) for log in state["log_history"] if "eval_uas" in log]
    measured = dict(found)
    best = state["best_global_step"]
    assert [step for step, _ in found] == [*range(2, state["global_step"] + 1, 2)]  # each once
    assert state["global_step"] == best + 4 < 80  # two measurements without a better one
    assert state["best_metric"] == measured[best] == 1.0 > measured[2]
    assert (stage / "method" / "model.safetensors").is_file()
    assert not (out / "method").exists()  # the parser is dropped
    config = yaml.safe_load((stage / "config.yaml").read_text())
    assert (config["method"], config["seed"]) == ("dependency_parsing", 7)
    assert config["treebank"] == str(files / "train.conllu")

    parsed = load_file(stage / "model.safetensors")
    begun = load_file(files / "model" / "model.safetensors")
    assert any(not torch.equal(parsed[n], t) for n, t in encoder_of(begun).items() if n in parsed)
    again = job_of(files, out, **options)
    assert list(pending_stages(again, fresh=False)) == []  # it is complete
    trainer, _ = build_trainer(started(again))
    ours = trainer.method.model.classifier.state_dict()
    assert encoder_of(ours).keys() == encoder_of(parsed).keys() and len(encoder_of(ours)) > 20
    for name, tensor in parsed.items():
        assert torch.equal(ours[name], tensor), name
    results = json.loads((out / "all_results.json").read_text())
    assert "eval_dev_accuracy" in results and "eval_uas" not in results


def test_the_head_is_the_one_that_plain_fine_tuning_begins_with(files, tmp_path):
    """Parsing does not train it, and it is drawn from the same seed."""
    out = tmp_path / "out"
    job = job_of(files, out, parsing_epochs=1)
    (stage,) = pending_stages(job, fresh=True)
    run(stage, summary=False)
    results = json.loads((stage.folder / "all_results.json").read_text())
    assert not {"eval_uas", "eval_dev_accuracy"} & results.keys()  # there was no dev treebank
    trainer, _ = build_trainer(started(job))
    plain, _ = build_trainer(job_of(files, tmp_path / "plain", method="finetuning"))
    head, other = (t.method.model.classifier.classifier.state_dict() for t in (trainer, plain))
    assert all(torch.equal(head[name], tensor) for name, tensor in other.items())


def test_a_stage_that_was_stopped_goes_on_with_its_patience(files, tmp_path, monkeypatch):
    """It ends after the steps, and with the bits, of a stage that was never stopped."""
    options = {
        "dev_treebank": files / "dev.conllu",
        "parsing_epochs": 20,
        "parsing_eval_steps": 2,
        "parsing_patience": 2,
    }

    def end_of(folder):
        state = json.loads((folder / "trainer_state.json").read_text())
        return state["global_step"], load_file(folder / "model.safetensors")

    (stage,) = pending_stages(job_of(files, tmp_path / "whole", **options), fresh=True)
    run(stage, summary=False)
    steps, weights = end_of(stage.folder)
    assert 4 < steps < 40
    calls = []
    measure = DependencyParsing.measure

    def stopped(method, batch_size):
        calls.append(batch_size)
        if len(calls) == steps // 2:  # the last measurement, after one without a better UAS
            raise KeyboardInterrupt
        return measure(method, batch_size)

    job = job_of(files, tmp_path / "stopped", **options)
    (stage,) = pending_stages(job, fresh=True)
    monkeypatch.setattr(DependencyParsing, "measure", stopped)
    with pytest.raises(KeyboardInterrupt):
        run(stage, summary=False)
    monkeypatch.undo()
    (again,) = pending_stages(job, fresh=True)
    assert again.training.resume_from_checkpoint == "last"
    run(again, summary=False)
    steps_again, weights_again = end_of(stage.folder)
    assert steps_again == steps
    for name, tensor in weights.items():
        assert torch.equal(weights_again[name], tensor), name


def test_the_loss_is_that_of_plain_fine_tuning():
    """The cross-entropy of a stock classifier's logits in float64, by hand."""
    batch = Batch.from_dict(PaddingCollator(tiny_tokenizer())(examples(5, 3)))
    model = tiny_model("bert")
    method = IntermediateParsing(model, tiny_tokenizer(), IntermediateParsingOptions())
    (loss,) = method.losses(batch, Step(torch.tensor([1, 0]), {"labels": torch.tensor(5.0)}))
    classifier = AutoModelForSequenceClassification.from_config(model.config).double()
    classifier.load_state_dict(model.classifier.state_dict())
    inputs = {"input_ids": batch.input_ids, "attention_mask": batch.attention_mask}
    shares_BC = classifier.eval()(**inputs).logits.softmax(-1)
    expected = -shares_BC[torch.arange(5), batch.labels].log().mean()
    assert float(loss.detach()) == pytest.approx(float(expected.detach()), rel=1e-5)


def test_options_reach_the_stage():
    options = IntermediateParsingOptions(__file__, __file__, 0.2, None, 50, 4)
    (stage,) = IntermediateParsing.stages(options)
    assert (stage.name, stage.method, stage.starts_from) == ("parsing", "dependency_parsing", None)
    arguments = stage.arguments
    assert (arguments["treebank"], arguments["parsing_dropout"]) == (__file__, 0.2)
    assert (arguments["num_train_epochs"], arguments["max_steps"]) == (100, -1)
    assert (arguments["eval_steps"], arguments["save_steps"]) == (50, 50)
    assert (arguments["metric_for_best_model"], stage.early_stopping_patience) == ("uas", 4)
    assert IntermediateParsing.starts_from(options) == "parsing"
    fixed = IntermediateParsingOptions(__file__, parsing_epochs=3)
    (stage,) = IntermediateParsing.stages(fixed)
    assert (stage.arguments["num_train_epochs"], stage.early_stopping_patience) == (3, None)
    assert stage.arguments["eval_strategy"] == "no"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "--treebank is missing: intermediate_parsing learns parsing first"),
        ({"treebank": __file__}, "--dev_treebank is missing, .* or --parsing_epochs"),
        ({"treebank": "none", "parsing_epochs": 1}, "--treebank: none: no such file"),
        ({"treebank": __file__, "dev_treebank": "none"}, "--dev_treebank: none: no such file"),
    ],
)
def test_a_missing_file_is_told_before_anything_is_loaded(
    files, tmp_path, monkeypatch, options, message
):
    monkeypatch.setattr("masktuning.training.run.build_trainer", None)  # nothing may call it
    words = words_of(files, tmp_path / "out")
    at = words.index("--treebank")
    words[at : at + 2] = [w for k, v in options.items() for w in (f"--{k}", str(v))]
    with pytest.raises(UsageError, match=message) as caught:
        run(read_job(words, EMBEDDED))
    assert "\n" not in str(caught.value) and not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("option", "value"),
    [("parsing_epochs", 0.0), ("parsing_eval_steps", 0), ("parsing_patience", 0)],
)
def test_options_out_of_range(option, value):
    with pytest.raises(ValueError, match=f"{option} is {value}: give"):
        IntermediateParsingOptions(**{option: value}).check()


def test_a_metric_that_parsing_does_not_measure(files, tmp_path, caplog):
    words = words_of(
        files,
        tmp_path / "out",
        method="dependency_parsing",
        dev_treebank=files / "dev.conllu",
        metric_for_best_model="accuracy",
    )
    with (
        caplog.at_level(logging.WARNING),
        pytest.raises(UsageError, match="accuracy: training measures eval_las, eval_uas"),
    ):
        run(read_job(words, EMBEDDED))
