"""The bias product against its equation in float64, and its column of frozen predictions."""

import json

import pytest
import torch
from datasets import Dataset
from families import examples, tiny_model, tiny_tokenizer
from stock_step import assert_same, stock_twins

from masktuning import MaskTuningTrainer
from masktuning.config.errors import UsageError
from masktuning.data.batch import Batch
from masktuning.data.collator import PaddingCollator
from masktuning.methods.bias.method import COLUMN
from masktuning.methods.bias_product import BiasProduct, BiasProductOptions
from masktuning.methods.step import Step
from masktuning.training.arguments import arguments_for

BIAS = [[0.9, 0.1], [0.2, 0.8], [0.5, 0.5], [0.01, 0.99]]


def write_bias(path, rows):
    """In reverse, since a line belongs to its example_id and not to its place."""
    lines = [json.dumps({"example_id": i, "probabilities": p}) for i, p in rows]
    path.write_text("\n".join(reversed(lines)) + "\n")
    return str(path)


@pytest.fixture
def rows():
    return examples(len(BIAS), 3)


@pytest.fixture
def bias_file(tmp_path, rows):
    found = [(row["example_id"], p) for row, p in zip(rows, BIAS, strict=True)]
    return write_bias(tmp_path / "bias.jsonl", found)


def batch_of(method, rows):
    prepared = method.prepare(rows, None)
    chosen = [prepared[i] for i in range(len(rows))]
    batch = Batch.from_dict(PaddingCollator(tiny_tokenizer())(chosen))
    return method.collate(batch, chosen)


@pytest.mark.parametrize("family", ["bert", "roberta", "distilbert"])
def test_loss_and_gradients(family, rows, bias_file):
    model = tiny_model(family)
    method = BiasProduct(model.train(), tiny_tokenizer(), BiasProductOptions(bias_file=bias_file))
    batch = batch_of(method, rows)
    step = Step(torch.tensor([1, 0]), {"labels": torch.tensor(4.0)})
    (loss,) = method.losses(batch, step)
    loss.backward()
    ours = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}

    classifier, _ = stock_twins(model)
    inputs = {"input_ids": batch.input_ids, "attention_mask": batch.attention_mask}
    f = classifier(**inputs).logits.softmax(-1)
    product = f * torch.tensor(BIAS, dtype=torch.float64)
    normalised = product / product.sum(-1, keepdim=True)
    expected = -normalised[torch.arange(4), batch.labels].log().mean()
    expected.backward()
    named = {f"classifier.{n}": p.grad for n, p in classifier.named_parameters()}
    gradients = {n: g for n, g in named.items() if g is not None}
    assert_same((float(loss.detach()), ours), (float(expected.detach()), gradients))
    plain = -f[torch.arange(4), batch.labels].log().mean()
    assert float(step.logged["loss_cls"]) == pytest.approx(float(plain.detach()), rel=1e-5)


def test_an_uninformative_bias_is_plain_fine_tuning(rows, tmp_path):
    model = tiny_model("bert")
    even = write_bias(tmp_path / "b.jsonl", [(row["example_id"], [0.5, 0.5]) for row in rows])
    method = BiasProduct(model, tiny_tokenizer(), BiasProductOptions(bias_file=even))
    step = Step(torch.tensor([1, 0]), {"labels": torch.tensor(4.0)})
    (loss,) = method.losses(batch_of(method, rows), step)
    assert float(loss.detach()) == pytest.approx(float(step.logged["loss_cls"]), rel=1e-5)


@pytest.mark.parametrize("as_table", [True, False], ids=["datasets", "list"])
def test_it_trains_and_evaluates_without_the_column(rows, bias_file, tmp_path, as_table):
    """Sets that are measured have no bias model's predictions, and need none."""
    train = Dataset.from_list(rows) if as_table else rows
    args = arguments_for("bias_product")(
        str(tmp_path / "out"),
        bias_file=bias_file,
        max_steps=2,
        logging_steps=1,
        per_device_train_batch_size=4,
        report_to="none",
        disable_tqdm=True,
        use_cpu=True,
        save_strategy="no",
    )
    trainer = MaskTuningTrainer(
        model=tiny_model("bert"),
        args=args,
        train_dataset=train,
        eval_dataset=Dataset.from_list(examples(6, 9)),
        processing_class=tiny_tokenizer(),
    )
    trainer.train()
    first = trainer.state.log_history[0]
    assert first["loss"] == pytest.approx(first["loss_product"], rel=1e-6) and "loss_cls" in first
    classifier = trainer.method.model.classifier.eval()
    correct = [
        int(classifier(torch.tensor([row["input_ids"]])).logits.argmax()) == row["labels"]
        for row in trainer.eval_dataset
    ]
    assert trainer.evaluate()["eval_accuracy"] == pytest.approx(sum(correct) / 6)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"example_id": 100, "probabilities": [0.5, 0.3, 0.2]}', "line 1: 3 probabilities, not 2"),
        ('{"example_id": 100, "probabilities": [1.0, 0.0]}', "line 1: .*probabilities above 0"),
        ('{"example_id": 100, "probabilities": [NaN, 0.5]}', "line 1: .*probabilities above 0"),
        ('{"example_id": 100, "probabilities": [0.7, 0.7]}', "line 1: .* add up to 1.4"),
        (2 * '{"example_id": 100, "probabilities": [0.5, 0.5]}\n', "line 2: a second line of"),
        ('{"probabilities": [0.5, 0.5]}', "line 1: give an example_id"),
        ("not JSON", "line 1: give an example_id"),
        ('{"example_id": 100, "probabilities": [0.5, 0.5]}', "no prediction for example_id 101"),
    ],
)
def test_a_bad_file_is_one_sentence(rows, tmp_path, line, message):
    path = tmp_path / "bias.jsonl"
    path.write_text(line + "\n")
    options = BiasProductOptions(bias_file=str(path))
    method = BiasProduct(tiny_model("bert"), tiny_tokenizer(), options)
    with pytest.raises(UsageError, match=message) as caught:
        method.prepare(rows, None)
    assert "\n" not in str(caught.value)


def test_no_predictions_at_all_are_asked_for(rows, tmp_path):
    for options, message in (
        (BiasProductOptions(), "--bias_file is missing"),
        (BiasProductOptions(bias_file=str(tmp_path / "no.jsonl")), "no such file"),
    ):
        method = BiasProduct(tiny_model("bert"), tiny_tokenizer(), options)
        with pytest.raises(UsageError, match=message):
            method.prepare(rows, None)
        assert COLUMN in method.prepare([{**row, COLUMN: [0.0, 0.0]} for row in rows], None)[0]
