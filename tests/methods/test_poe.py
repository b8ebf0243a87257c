"""PoE with a trained bias head against its equation in float64; what the heads of it see."""

import pickle

import pytest
import torch
from bias_head_twin import bias_cross_entropy, bias_logits
from debiasing import FAMILIES, LABELS, PAIRS, Stock, batch_of, method_of, plain, rows_of, step_of
from families import tiny_model
from pair_tokenizers import pair_rows, pair_tokenizer
from stock_step import assert_same

from masktuning import MaskTuningTrainer
from masktuning.config.errors import UsageError
from masktuning.data.collator import PaddingCollator
from masktuning.demo import EMBEDDED
from masktuning.methods.bias.head import exact_features, similarity_statistics
from masktuning.methods.poe import Poe
from masktuning.training.arguments import arguments_for
from masktuning.training.job import read_job
from masktuning.training.method_collator import MethodCollator

HEADS = ("overlap", "hypothesis")


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("kind", HEADS)
def test_loss_and_gradients(family, kind):
    method = method_of(Poe, family, bias_head=kind)
    batch = batch_of(method, rows_of(method, bias=None))
    loss, gradients, step = step_of(method, batch)
    stock = Stock(method, batch)
    g = bias_logits(stock, kind, PAIRS)
    product = stock.logits.softmax(-1) * g.softmax(-1)
    normalised = product / product.sum(-1, keepdim=True)
    main = sum(-normalised[i, label].log() for i, label in enumerate(LABELS)) / 4
    bias = bias_cross_entropy(g, kind, LABELS)
    expected = stock.gradients(main + bias)
    assert_same((loss, gradients), (float((main + bias).detach()), expected))
    logged = {name: float(value) for name, value in step.logged.items()}
    assert logged["loss_product"] == pytest.approx(float(main.detach()), rel=1e-5)
    assert logged["loss_bias"] == pytest.approx(float(bias.detach()), rel=1e-5)
    assert logged["loss_cls"] == pytest.approx(plain(method, batch), rel=1e-5)


@pytest.mark.parametrize("kind", HEADS)
def test_a_head_without_an_opinion_leaves_plain_fine_tuning(kind):
    method = method_of(Poe, bias_head=kind)
    with torch.no_grad():
        for parameter in [*method.bias_head.parameters()][-2:]:
            parameter.zero_()
    batch = batch_of(method, rows_of(method, bias=None))
    step = step_of(method, batch)[2]
    assert float(step.logged["loss_product"]) == pytest.approx(plain(method, batch), rel=1e-5)


@pytest.mark.parametrize("kind", HEADS)
def test_nothing_of_the_branch_reaches_the_encoder(kind):
    """Neither a gradient of the head's own loss, nor the dropout of training."""
    method = method_of(Poe, bias_head=kind)
    for module in method.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.5
    batch = batch_of(method, rows_of(method, bias=None))
    first, second = (method.bias_logits(batch) for _ in range(2))
    assert torch.equal(first, second) and method.model.training and method.model.encoder.training
    first.sum().backward()
    assert all(p.grad is None for p in method.model.parameters())
    assert all(p.grad is not None for p in method.bias_head.parameters())


def test_the_exact_features():
    def features(premise, hypothesis):
        return exact_features(premise.split(), hypothesis.split())

    assert features("the cat sat .", "cat sat .") == [1, 1, 1]
    assert features("the cat sat", "sat cat !") == [1, 0, 1]
    assert features("the cat sat", "the dog the") == [0, 0, 0.5]
    assert features("the cats sat", "cat") == [0, 0, 0]
    assert features("the cat", "?") == [0, 0, 0] == features("", "cat")


def test_the_statistics_of_similarities():
    similar = torch.tensor([[[0.1, 0.5, 0.9], [-0.3, 0.2, 0.8], [1.0, 1.0, 1.0]]])
    first = torch.tensor([[True, True, False]])
    second = torch.tensor([[True, True, False]])
    found = similarity_statistics(similar, first, second)
    torch.testing.assert_close(found, torch.tensor([[0.2, 0.35, 0.5]]))


def test_padding_and_the_other_examples_change_nothing():
    method = method_of(Poe, "roberta")
    rows = rows_of(method, bias=None)
    whole = method.bias_logits(batch_of(method, rows))
    for i, row in enumerate(rows):
        alone = method.bias_logits(batch_of(method, [row]))
        torch.testing.assert_close(alone[0], whole[i], rtol=1e-4, atol=1e-5)


def test_a_text_of_its_own_has_at_most_64_tokens():
    method = method_of(Poe)
    row = {"input_ids": [0, *[7] * 100, 2, 8, 2], "attention_mask": [1] * 104, "labels": 0}
    batch = batch_of(method, [{**row, "example_id": 0}])
    assert batch.columns["first_ids"].tolist() == [[0, *[7] * 62, 2]]
    assert batch.columns["second_ids"].tolist() == [[0, 8, 2]]


def test_without_entailment_all_labels_weigh_the_same():
    for names, expected in (
        ({0: "different", 1: "duplicate"}, [1, 1]),
        ({0: "not_entailment", 1: "Entailment"}, [1, 1]),
        ({0: "neutral", 1: "entailment", 2: "contradiction"}, [0.5, 1]),
    ):
        method = method_of(Poe, names=names)
        rows = rows_of(method, pairs=PAIRS[:3], labels=[0, 1, -100], bias=None)
        assert float(method.counts(batch_of(method, rows))["bias_weights"]) == sum(expected)


def test_workers_of_a_data_loader_can_collate():
    method = method_of(Poe)
    rows = rows_of(method, bias=None)
    batch = batch_of(method, rows)
    collator = MethodCollator(PaddingCollator(method.tokenizer), method)
    found = pickle.loads(pickle.dumps(collator))(rows)
    for name, column in batch.columns.items():
        assert torch.equal(found[name], column), name


@pytest.mark.parametrize("bf16", [False, True])
def test_it_trains_and_its_head_is_saved(tmp_path, bf16):
    tokenizer = pair_tokenizer("bert")
    args = arguments_for("poe")(
        str(tmp_path / "out"),
        max_steps=2,
        logging_steps=1,
        per_device_train_batch_size=2,
        report_to="none",
        disable_tqdm=True,
        use_cpu=True,
        save_strategy="no",
        bf16=bf16,
    )
    trainer = MaskTuningTrainer(
        model=tiny_model("bert", num_labels=3, id2label={0: "a", 1: "b", 2: "c"}),
        args=args,
        train_dataset=pair_rows(tokenizer, PAIRS, LABELS),
        processing_class=tokenizer,
    )
    before = {n: p.detach().clone() for n, p in trainer.method.named_parameters()}
    trainer.train()
    log = trainer.state.log_history[0]
    total = log["loss_product"] + log["loss_bias"]
    assert log["loss_poe"] == pytest.approx(total, rel=1e-5)
    moved = {n for n, p in trainer.method.named_parameters() if not torch.equal(p, before[n])}
    assert {n for n in before if n.startswith("bias_head")} <= moved
    assert any("attention" in name for name in moved)
    trainer.save_model(str(tmp_path / "saved"))
    other = method_of(Poe, names={0: "a", 1: "b", 2: "c"})
    other.load_weights(tmp_path / "saved")
    assert torch.equal(other.bias_head[0].weight, trainer.method.bias_head[0].weight)


def test_what_cannot_be_is_one_line():
    with pytest.raises(ValueError, match="bias_head is 'x': give 'overlap' or 'hypothesis'"):
        Poe.Options(bias_head="x").check()
    message = "--bias_head overlap needs sentence pairs, and the task is one of single texts"
    with pytest.raises(UsageError, match=message):
        read_job("--task demo --method poe".split(), EMBEDDED)
    method = method_of(Poe)
    with pytest.raises(
        UsageError, match=r"needs sentence pairs, and .* example_id 100 is one text"
    ):
        method.prepare(pair_rows(method.tokenizer, ["w1"], [0]), None)
    model = tiny_model("modernbert", classifier_pooling="mean")
    with pytest.raises(ValueError, match="modernbert reads more than one state of a text"):
        Poe(model, pair_tokenizer("roberta"), Poe.Options(bias_head="hypothesis"))
    Poe(model, pair_tokenizer("roberta"), Poe.Options())
