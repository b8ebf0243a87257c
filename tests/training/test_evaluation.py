"""The trainer's evaluation: its order, and the logits of dev that a run need not compute again."""

import json
import shutil

import numpy as np
import pytest
import torch
from datasets import Dataset
from families import examples, save_tiny, tiny_model, tiny_tokenizer
from torch.utils.data import DataLoader
from transformers import Trainer, TrainerCallback

from masktuning import MaskTuningArguments, MaskTuningTrainer, evaluate, train
from masktuning.evaluation.predict import predict
from masktuning.training.trainer import MaskTuningTrainer as Trained


def trainer_of(folder, compute_metrics=None, callbacks=None, **options):
    settings = {
        "output_dir": str(folder),
        "per_device_train_batch_size": 8,
        "per_device_eval_batch_size": 4,
        "num_train_epochs": 2,
        "eval_strategy": "epoch",
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "use_cpu": True,
        **options,
    }
    return MaskTuningTrainer(
        model=tiny_model("bert"),
        args=MaskTuningArguments(**settings),
        train_dataset=Dataset.from_list(examples(16, 1)),
        eval_dataset=Dataset.from_list(examples(15, 2)),
        processing_class=tiny_tokenizer(),
        compute_metrics=compute_metrics,
        callbacks=callbacks,
    )


def stock_logits(trainer, dataset):
    """One text at a time, so without padding and in the order of the rows."""
    classifier = trainer.method.model.classifier.eval()
    with torch.no_grad():
        rows = [classifier(torch.tensor([ids])).logits[0] for ids in dataset["input_ids"]]
    return torch.stack(rows).numpy()


@pytest.fixture
def lengths_seen(monkeypatch):
    """The padded length and the number of texts of each evaluated batch."""
    seen = []
    stock = Trainer.prediction_step

    def recording(self, model, inputs, *rest, **more):
        seen.append(inputs["input_ids"].shape)
        return stock(self, model, inputs, *rest, **more)

    monkeypatch.setattr(Trainer, "prediction_step", recording)
    return seen


@pytest.mark.parametrize("strategy", ["random", "group_by_length"])
def test_predict_returns_the_order_of_its_data_set(tmp_path, strategy):
    """Whatever order training has; Trainer's own would be shuffled by length."""
    trainer = trainer_of(tmp_path, train_sampling_strategy=strategy)
    dataset = trainer.eval_dataset
    output = trainer.predict(dataset)
    assert output.label_ids.tolist() == dataset["labels"]
    wanted = stock_logits(trainer, dataset)
    np.testing.assert_allclose(output.predictions, wanted, atol=1e-5)
    np.testing.assert_allclose(predict(trainer, dataset), wanted, atol=1e-5)


@pytest.mark.parametrize("strategy", ["random", "group_by_length"])
def test_a_metric_of_the_user_s_sees_the_order_of_the_data_set(tmp_path, strategy):
    seen = []

    def metric(predictions):
        seen.append(predictions)
        return {"first": float(predictions.label_ids[0])}

    trainer = trainer_of(tmp_path, metric, train_sampling_strategy=strategy)
    trainer.evaluate()
    (given,) = seen
    assert given.label_ids.tolist() == trainer.eval_dataset["labels"]
    wanted = stock_logits(trainer, trainer.eval_dataset)
    np.testing.assert_allclose(given.predictions, wanted, atol=1e-5)


def test_accuracy_is_measured_on_the_longest_texts_first(tmp_path, lengths_seen):
    trainer = trainer_of(tmp_path)
    dataset = trainer.eval_dataset
    metrics = trainer.evaluate()
    by_length = sorted(map(len, dataset["input_ids"]), reverse=True)
    assert [shape[1] for shape in lengths_seen] == by_length[::4]
    logits, labels = stock_logits(trainer, dataset), np.array(dataset["labels"])
    assert metrics["eval_accuracy"] == np.mean(logits.argmax(1) == labels)
    loss = torch.nn.functional.cross_entropy(torch.tensor(logits), torch.tensor(labels))
    assert metrics["eval_loss"] == pytest.approx(float(loss), rel=1e-5)
    # Who asks for the loader, or evaluates what has no lengths, gets the order of the rows.
    loader: DataLoader = trainer.get_eval_dataloader()
    assert [label for batch in loader for label in batch["labels"].tolist()] == labels.tolist()
    rows = list(dataset)
    assert trainer.evaluate(rows)["eval_accuracy"] == metrics["eval_accuracy"]
    by_row = list(map(len, dataset["input_ids"]))
    assert [shape[1] for shape in lengths_seen[4:]] == [
        max(by_row[i : i + 4]) for i in (0, 4, 8, 12)
    ]
    both = trainer.evaluate({"a": dataset, "b": rows})
    assert both["eval_a_accuracy"] == both["eval_b_accuracy"] == metrics["eval_accuracy"]


def test_every_text_is_measured(tmp_path, lengths_seen):
    """The flag --dataloader_drop_last is for training: a score is one of the whole set."""
    trainer = trainer_of(tmp_path, dataloader_drop_last=True)
    labels = trainer.predict(trainer.eval_dataset).label_ids.tolist()
    assert labels == trainer.eval_dataset["labels"] and len(lengths_seen) == 4
    trainer.evaluate()
    assert len(lengths_seen) == 8 and trainer.args.dataloader_drop_last


class Predicting(TrainerCallback):
    """Predicts another set as soon as one has been evaluated."""

    def __init__(self):
        self.labels = []

    def on_evaluate(self, *args, **kwargs):
        self.labels.append(self.trainer.predict(self.other).label_ids.tolist())


def test_a_callback_may_predict_after_an_evaluation(tmp_path):
    callback = Predicting()
    trainer = trainer_of(tmp_path, callbacks=[callback])
    callback.trainer, callback.other = trainer, Dataset.from_list(examples(20, 5))
    trainer.train()
    assert callback.labels == 2 * [callback.other["labels"]]
    np.testing.assert_array_equal(trainer.dev_logits(), predict(trainer, trainer.eval_dataset))


def test_the_logits_of_the_last_evaluation_are_those_of_predict(tmp_path):
    trainer = trainer_of(tmp_path, bf16=True)
    assert trainer.dev_logits() is None
    trainer.train()
    np.testing.assert_array_equal(trainer.dev_logits(), predict(trainer, trainer.eval_dataset))
    trainer.state.global_step += 1  # as after a step that no evaluation followed
    assert trainer.dev_logits() is None


def test_the_best_model_has_its_own_logits(tmp_path, monkeypatch):
    options = {"save_strategy": "steps", "eval_strategy": "steps", "eval_steps": 1, "save_steps": 1}
    trainer = trainer_of(
        tmp_path,
        max_steps=4,
        learning_rate=0.5,  # so that every step changes the logits
        load_best_model_at_end=True,
        metric_for_best_model="loss",
        **options,
    )
    determine = trainer._determine_best_metric
    losses = iter([3.0, 1.0, 2.0, 4.0])  # the second step is the best, whatever the rounding
    monkeypatch.setattr(
        trainer,
        "_determine_best_metric",
        lambda metrics, trial: determine({**metrics, "eval_loss": next(losses)}, trial),
    )
    trainer.train()
    assert trainer.state.best_global_step == 2
    np.testing.assert_array_equal(trainer.dev_logits(), predict(trainer, trainer.eval_dataset))


@pytest.mark.parametrize(
    "options",
    [
        {"bf16_full_eval": True},  # after training the model is cast first
        {"eval_strategy": "no"},
    ],
)
def test_no_logits_of_other_weights(tmp_path, options):
    trainer = trainer_of(tmp_path, **options)
    trainer.train()
    assert trainer.dev_logits() is None


def test_a_second_training_forgets_the_first(tmp_path):
    trainer = trainer_of(tmp_path)
    trainer.train()
    trainer.args.eval_strategy = "no"
    trainer.train()
    assert trainer.dev_logits() is None


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("files")
    save_tiny(folder / "model", "bert")
    for name, count in (("train", 24), ("dev", 20), ("far", 12)):
        rows = [f"{'w1 ' * (i % 5)}w{7 * i % 80},{'ab'[7 * i % 80 % 2]}" for i in range(count)]
        (folder / f"{name}.csv").write_text("text,label\n" + "\n".join(rows) + "\n")
    return folder


def run(files, out, *words):
    """all_results.json of a run, without what the clock says."""
    train.main(
        ["--model_name_or_path", f"{files}/model", "--train_file", f"{files}/train.csv"]
        + ["--validation_file", f"{files}/dev.csv", "--eval_files", f"far={files}/far.csv"]
        + ["--per_device_train_batch_size", "8", "--num_train_epochs", "2", "--use_cpu", "true"]
        + ["--disable_tqdm", "true", "--output_dir", str(out), *words]
    )
    results = json.loads((out / "all_results.json").read_text())
    return {k: v for k, v in results.items() if "second" not in k and k != "train_runtime"}


BEST = ["--load_best_model_at_end", "true", "--metric_for_best_model", "loss"]
BEST += ["--save_strategy", "epoch", "--learning_rate", "0.5"]


@pytest.mark.parametrize("words", [[], BEST], ids=["last", "best"])
def test_a_run_measures_dev_once_per_epoch(files, tmp_path, monkeypatch, lengths_seen, words):
    results = run(files, tmp_path / "out", *words)
    assert sum(shape[0] for shape in lengths_seen) == 2 * 20 + 12
    with monkeypatch.context() as patch:
        patch.setattr(Trained, "dev_logits", lambda self: None)
        assert run(files, tmp_path / "again", *words) == results
    assert sum(shape[0] for shape in lengths_seen[len(lengths_seen) // 2 :]) >= 3 * 20
    folder, out = str(tmp_path / "out"), str(tmp_path / "measured")
    words = ["--eval_files", f"other={files / 'dev.csv'}", "--output_dir", out]
    evaluate.main(["--model_name_or_path", folder, *words])
    measured = json.loads((tmp_path / "measured" / "results.json").read_text())
    assert measured["eval_other_accuracy"] == results["eval_dev_accuracy"]


def test_a_resumed_run_has_the_same_results(files, tmp_path, lengths_seen):
    """Stopped after its first epoch; and once it is complete, which measures every set again."""
    results = run(files, tmp_path / "out", "--save_strategy", "epoch", "--keep_optimizer_states")
    shutil.rmtree(tmp_path / "out" / "checkpoint-6")
    lengths_seen.clear()
    resumed = run(files, tmp_path / "out", "--resume_from_checkpoint", "--save_strategy", "epoch")
    assert sum(shape[0] for shape in lengths_seen) == 20 + 12
    measured = {k: v for k, v in results.items() if k.startswith("eval_")}
    assert {k: resumed[k] for k in measured} == measured
    lengths_seen.clear()
    complete = run(files, tmp_path / "out", "--resume_from_checkpoint", "--save_strategy", "epoch")
    assert sum(shape[0] for shape in lengths_seen) == 20 + 12
    assert complete == resumed


def test_examples_without_a_label_do_not_count(tmp_path):
    """As in training, the label -100 is none; a batch may hold no other."""
    trainer = trainer_of(tmp_path, per_device_eval_batch_size=1)
    rows = trainer.eval_dataset
    labels = [-100 if i % 3 else label for i, label in enumerate(rows["labels"])]
    rows = rows.remove_columns("labels").add_column("labels", labels)
    found = stock_logits(trainer, rows).argmax(-1)
    labelled = [i for i, label in enumerate(labels) if label != -100]
    metrics = trainer.evaluate(rows)
    wanted = np.mean([found[i] == labels[i] for i in labelled])
    assert metrics["eval_accuracy"] == pytest.approx(wanted)
    shares = torch.tensor(stock_logits(trainer, rows)).double().log_softmax(-1)
    wanted = -np.mean([float(shares[i, labels[i]]) for i in labelled])
    assert metrics["eval_loss"] == pytest.approx(wanted, rel=1e-5)
    none = rows.remove_columns("labels").add_column("labels", [-100] * len(rows))
    assert "eval_accuracy" not in trainer.evaluate(none)


def test_predictions_of_the_user_s_own_leave_the_loss_alone(tmp_path):
    """With -100 among the labels: what the hook returns need not be logits."""
    trainer = trainer_of(tmp_path, compute_metrics=lambda kept: {"n": kept.predictions.ndim})
    trainer.preprocess_logits_for_metrics = lambda logits, labels: logits.argmax(-1)
    rows = trainer.eval_dataset
    labels = [-100, *rows["labels"][1:]]
    metrics = trainer.evaluate(rows.remove_columns("labels").add_column("labels", labels))
    assert metrics["eval_n"] == 1 and np.isfinite(metrics["eval_loss"])
