"""The parts of a run, its best model, and the scores that reach the log."""

import json

import numpy as np
import pytest
import yaml
from families import save_tiny
from safetensors.torch import load_file
from transformers import Trainer

from masktuning import MaskTuningTrainer, evaluate, train
from masktuning.config.errors import UsageError
from masktuning.demo import EMBEDDED
from masktuning.training.job import read_job


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("files")
    save_tiny(folder / "model", "bert", hidden_dropout_prob=0.1)
    for name, count in (("train", 24), ("dev", 20), ("far", 12)):
        rows = [f"{'w1 ' * (i % 5)}w{7 * i % 80},{'ab'[7 * i % 80 % 2]}" for i in range(count)]
        (folder / f"{name}.csv").write_text("text,label\n" + "\n".join(rows) + "\n")
    texts = [line.split(",")[0] for line in (folder / "far.csv").read_text().splitlines()]
    (folder / "new.csv").write_text("\n".join(texts) + "\n")  # far, without its labels
    return folder


def words_of(files, out, *words, model="model"):
    return [
        *("--model_name_or_path", str(files / model), "--train_file", f"{files}/train.csv"),
        *("--validation_file", f"{files}/dev.csv", "--eval_files", f"far={files}/far.csv"),
        *("--per_device_train_batch_size", "8", "--learning_rate", "0.5", "--use_cpu", "true"),
        *("--disable_tqdm", "true", "--logging_steps", "100", "--output_dir", str(out), *words),
    ]


def read(path):
    return json.loads(path.read_text())


def predictions(path):
    return [json.loads(line)["prediction"] for line in path.read_text().splitlines()]


@pytest.fixture(scope="module")
def best(files, tmp_path_factory):
    """A run that keeps the model that is best on far, of which the second evaluation is made it."""
    out = tmp_path_factory.mktemp("best") / "out"
    with pytest.MonkeyPatch.context() as patch:
        found = iter([0.2, 0.9, 0.3, 0.4, 0.95])
        determine, seen = MaskTuningTrainer._determine_best_metric, []

        def determined(self, metrics, trial):
            seen.append(dict(metrics))
            return determine(self, {**metrics, "eval_far_accuracy": next(found)}, trial)

        patch.setattr(MaskTuningTrainer, "_determine_best_metric", determined)
        train.main(
            words_of(files, out, "--load_best_model_at_end", "--eval_ood", "epoch")
            + ["--metric_for_best_model", "eval_far_accuracy", "--num_train_epochs", "4"]
            + ["--save_total_limit", "4", "--do_predict", "--test_file", f"{files}/new.csv"]
        )
    return out, seen


def test_the_best_model_is_what_is_saved_and_measured(files, best, tmp_path):
    out, _ = best
    state, results = read(out / "trainer_state.json"), read(out / "all_results.json")
    assert state["best_global_step"] == 6  # three steps an epoch
    kept = load_file(out / "model.safetensors")
    for step, same in ((6, True), (12, False)):
        other = load_file(out / f"checkpoint-{step}" / "model.safetensors")
        assert all(np.array_equal(kept[name], other[name]) for name in kept) == same
    options = ["--do_train", "false", "--do_predict", "--test_file", f"{files}/far.csv"]
    folder = tmp_path / "measured"
    train.main(words_of(files, folder, *options, model=str(out)))
    measured = read(folder / "results.json")
    for name in ("dev", "far"):
        assert measured[f"eval_{name}_accuracy"] == results[f"eval_{name}_accuracy"]
    # A label column in the file is not read: the predictions are those of the run itself.
    found = predictions(folder / "predictions_test_file.jsonl")
    assert found == predictions(out / "predictions_test_file.jsonl")
    assert found == predictions(folder / "predictions_far.jsonl") and len(found) == 12
    assert not (folder / "config.yaml").exists()  # nothing was trained
    assert "the best eval_far_accuracy." in (out / "README.md").read_text()


def test_scores_of_all_sets_are_in_the_log(best):
    """After each epoch as the trainer saw them, and at the end those of the model that is kept."""
    out, seen = best
    history, results = (
        read(out / "trainer_state.json")["log_history"],
        read(out / "all_results.json"),
    )
    *epochs, last = [log for log in history if "eval_far_accuracy" in log]
    assert [log["step"] for log in epochs] == [3, 6, 9, 12] and len(seen) == 4
    for log, metrics in zip(epochs, seen, strict=True):
        assert log["eval_dev_accuracy"] == log["eval_accuracy"] == metrics["eval_dev_accuracy"]
        assert log["eval_far_accuracy"] == metrics["eval_far_accuracy"]
    for name in ("eval_dev_accuracy", "eval_far_accuracy"):
        assert last[name] == results[name] == seen[1][name]
    config = yaml.safe_load((out / "config.yaml").read_text())
    assert config["eval_ood"] == "epoch" and config["save_strategy"] == "epoch"


def test_a_run_stops_early_and_is_then_complete(files, tmp_path, monkeypatch, capsys):
    """By a loss that stops falling; measuring far as well leaves the training as it was."""
    evaluated = []
    losses = iter([3.0, 2.0, 2.5, 2.6])
    log = Trainer.log

    def logging(self, logs, start_time=None):
        if "eval_loss" in logs:
            logs["eval_loss"] = next(losses)
            evaluated.append(self.state.global_step)
        log(self, logs, start_time)

    monkeypatch.setattr(Trainer, "log", logging)
    words = words_of(files, tmp_path / "out", "--early_stopping_patience", "2")
    words += ["--num_train_epochs", "9", "--eval_ood", "epoch"]
    train.main(words)
    assert evaluated == [3, 6, 9, 12]
    state = read(tmp_path / "out" / "trainer_state.json")
    assert (state["best_global_step"], state["global_step"]) == (6, 12)
    weights = (tmp_path / "out" / "model.safetensors").read_bytes()
    capsys.readouterr()
    train.main([*words, "--resume_from_checkpoint"])
    assert "nothing is left to train" in capsys.readouterr().out
    assert (tmp_path / "out" / "model.safetensors").read_bytes() == weights
    losses = iter([3.0, 2.0, 2.5, 2.6])
    other = words_of(files, tmp_path / "end", "--early_stopping_patience", "2")
    train.main([*other, "--num_train_epochs", "9"])
    assert (tmp_path / "end" / "model.safetensors").read_bytes() == weights


def test_a_run_without_evaluation(files, tmp_path):
    train.main(words_of(files, tmp_path / "out", "--do_eval", "false", "--max_steps", "1"))
    results = read(tmp_path / "out" / "all_results.json")
    assert "train_loss" in results and not [name for name in results if name.startswith("eval_")]


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ([], ("epoch", None, "epoch", 0.1)),
        (["--eval_strategy", "steps"], ("steps", 0.1, "steps", 0.1)),
        (["--eval_steps", "7"], ("steps", 7, "steps", 7)),
        (["--save_steps", "6", "--eval_steps", "3"], ("steps", 3, "steps", 6)),
        (["--save_strategy", "steps"], ("steps", 0.1, "steps", 0.1)),
        (["--save_strategy", "best"], ("epoch", None, "best", 0.1)),
    ],
)
def test_strategies_match_by_default(files, tmp_path, caplog, words, expected):
    words = words_of(files, tmp_path, "--load_best_model_at_end", *words)
    args = read_job([*words, "--metric_for_best_model", "accuracy"], EMBEDDED).training
    found = (args.eval_strategy, args.eval_steps, args.save_strategy, args.save_steps)
    assert found == expected
    assert "to find the best model, chosen by default: --" in caplog.text


def test_defaults_of_the_parts(files, tmp_path):
    """A bare --do_train trains as no flag does; stopping early keeps the best model."""
    for words in ([], ["--do_train"], ["--do_train", "true"], ["--do_eval"]):
        args = read_job(words_of(files, tmp_path, *words), EMBEDDED).training
        assert (args.do_train, args.do_eval, args.do_predict) == (True, True, False)
        assert (args.eval_strategy, args.save_strategy) == ("epoch", "steps")
    args = read_job(words_of(files, tmp_path, "--early_stopping_patience", "1"), EMBEDDED).training
    assert args.load_best_model_at_end and args.restore_callback_states_from_checkpoint


WRONG = {
    "--do_predict": "--do_predict needs --test_file",
    "--test_file F/new.csv": "--test_file goes with --do_predict",
    "--do_predict --test_file F/train.csv": "--test_file and --train_file are the same file",
    "--do_predict --test_file F/none.csv": "no such file",
    "--do_train false --do_eval false": "nothing is left to do",
    "--do_train false --dry_run": "--dry_run and --resume_from_checkpoint go with a training",
    "--do_eval false --eval_strategy epoch": "--do_eval false leaves out every evaluation",
    "--do_eval false --load_best_model_at_end": "--do_eval false leaves out every evaluation",
    "--early_stopping_patience 0": "early_stopping_patience is 0: give 1 or more",
    "--early_stopping_patience 2 --eval_strategy no": "needs --eval_strategy epoch or steps",
    "--load_best_model_at_end --save_strategy no": "needs --save_strategy epoch or steps",
    "--eval_ood epoch --eval_strategy no": "--eval_ood epoch needs --eval_strategy",
    "--load_best_model_at_end --metric_for_best_model eval_far_accuracy": "--eval_ood epoch",
    "--load_best_model_at_end --metric_for_best_model acuracy": "eval_accuracy, eval_dev_accuracy",
    "--class_weights 1,2,3": "3 numbers, but there are 2 labels: give one for each of a, b",
}


@pytest.mark.parametrize("words", WRONG)
def test_mistakes_are_told_before_training(files, tmp_path, words):
    with pytest.raises(UsageError, match=WRONG[words]):
        train.main(words_of(files, tmp_path / "out", *words.replace("F/", f"{files}/").split()))
    assert not (tmp_path / "out" / "config.yaml").exists()


def test_evaluate_predicts_too(files, tmp_path, best):
    words = ["--model_name_or_path", str(best[0]), "--test_file", f"{files}/new.csv"]
    with pytest.raises(UsageError, match="--test_file needs --output_dir"):
        evaluate.main(words)
    evaluate.main([*words, "--output_dir", str(tmp_path)])
    found = predictions(tmp_path / "predictions_test_file.jsonl")
    assert found == predictions(best[0] / "predictions_test_file.jsonl")
    assert not (tmp_path / "results.json").exists()


@pytest.mark.parametrize("written", ["no", "'no'"])
def test_a_strategy_of_no_in_yaml_needs_no_quotes(tmp_path, written):
    """YAML reads a bare `no` as false."""
    path = tmp_path / "c.yaml"
    path.write_text(f"eval_strategy: {written}\nsave_strategy: {written}\n")
    job = read_job(["--config", str(path), "--output_dir", "x"], EMBEDDED)
    assert (job.training.eval_strategy.value, job.training.save_strategy.value) == ("no", "no")
    told = "--load_best_model_at_end needs --eval_strategy epoch or steps"
    with pytest.raises(UsageError, match=told):
        read_job(["--config", str(path), "--load_best_model_at_end"], EMBEDDED)


def test_a_run_says_where_it_stopped_and_what_it_kept(files, tmp_path, capsys, monkeypatch):
    """The first evaluation is made the best one, so that the third ends the run."""
    accuracies = iter([0.9, 0.5, 0.4])
    determine = MaskTuningTrainer._determine_best_metric
    monkeypatch.setattr(
        MaskTuningTrainer,
        "_determine_best_metric",
        lambda self, metrics, trial: determine(
            self, {**metrics, "eval_accuracy": next(accuracies)}, trial
        ),
    )
    evaluate_dev = MaskTuningTrainer.evaluate
    seen = iter([0.9, 0.5, 0.4])

    def evaluated(self, *args, **kwargs):
        metrics = evaluate_dev(self, *args, **kwargs)
        if self.is_in_train:
            metrics["eval_accuracy"] = next(seen)  # what early stopping reads
        return metrics

    monkeypatch.setattr(MaskTuningTrainer, "evaluate", evaluated)
    words = ("--eval_steps", "2", "--max_steps", "12", "--metric_for_best_model", "accuracy")
    train.main(words_of(files, tmp_path / "out", *words, "--early_stopping_patience", "2"))
    printed = capsys.readouterr().out
    assert "stopped early, after step 6 of 12" in printed
    assert "the model of step 2 is kept, with the best accuracy: 0.9000" in printed


def test_a_resume_with_other_options_is_told(files, tmp_path, caplog):
    words = words_of(files, tmp_path / "out", "--max_steps", "4", "--save_steps", "2")
    train.main([*words, "--keep_optimizer_states", "--eval_strategy", "no"])
    resumed = [*words, "--resume_from_checkpoint", str(tmp_path / "out" / "checkpoint-2")]
    resumed += ["--keep_optimizer_states", "--eval_strategy", "no"]
    train.main(resumed)
    assert "with other options than the run began with" not in caplog.text
    train.main([*resumed, "--weight_decay", "0.1", "--alpha", "0.25"])
    assert "--alpha 0.25 (was auto), --weight_decay 0.1 (was None)" in caplog.text
