"""Dependency parsing against its equation: one sentence and one word at a time, in float64."""

from pathlib import Path

import masktuning_C
import pytest
import torch
from datasets import Dataset
from families import examples, tiny_model, tiny_tokenizer
from safetensors.torch import load_file
from stock_step import EPOCH, SEED, assert_same, stock_twins
from treebanks import ROW, write_treebank

from masktuning import MaskTuningTrainer
from masktuning.config.errors import UsageError
from masktuning.data.batch import Batch
from masktuning.data.collator import PaddingCollator
from masktuning.methods.dependency_parsing import (
    DependencyParsing,
    DependencyParsingOptions,
    kept_states,
)
from masktuning.methods.step import Step
from masktuning.training.arguments import arguments_for

STREAM = 45
# (word, head, relation); a word with a space in it has two tokens.
SENTENCES = [
    [("w1 w9", 2, "det"), ("w2", 3, "nsubj"), ("w3", 0, "root"), ("w4 w5 w6", 3, "obj")],
    [("w7", 0, "root"), ("w8", 1, "obj")],
    [("w5", 2, "nsubj"), ("w6", 0, "root"), ("w2", 2, "obj")],
]
RELATIONS = ["det", "nsubj", "obj", "root"]  # sorted, as the ids are


@pytest.fixture
def treebank(tmp_path):
    path = tmp_path / "train.conllu"
    rows = [
        "\n".join(ROW.format(i, word, "X", *rest) for i, (word, *rest) in enumerate(s, 1))
        for s in SENTENCES
    ]
    path.write_text("\n\n".join(rows) + "\n")
    return str(path)


def method_of(model, treebank, **options):
    """The method with random weights, so that each gradient depends on every part."""
    options = DependencyParsingOptions(treebank=treebank, **options)
    method = DependencyParsing(model.train(), tiny_tokenizer(), options)
    torch.manual_seed(5)
    for weight in method.parser.parameters():
        torch.nn.init.normal_(weight, std=0.1)
    return method


def batch_of(method, rows):
    return method.collate(Batch.from_dict(PaddingCollator(tiny_tokenizer())(rows)), rows)


def our_step(method, batch, words=9):
    step = Step(torch.tensor([SEED, EPOCH]), {"words": torch.tensor(float(words))})
    (loss,) = method.losses(batch, step)
    loss.backward()
    grads = {name: p.grad for name, p in method.named_parameters() if p.grad is not None}
    return (float(loss.detach()), grads), step


def kept(example, place, width, rate):
    """The definition of dropout: which of a token's numbers are kept, by the counter."""
    limit = round(rate * 2**32)
    quarters = (width + 3) // 4
    found = []
    for i in range(width):
        counter = place * quarters + i // 4
        words = masktuning_C.philox4x32_10(counter, example, EPOCH, STREAM, SEED, 0)
        found.append(words[i % 4] >= limit)
    return torch.tensor(found)


def cross_entropy(scores, target):
    return -(torch.stack(scores).softmax(0)[target]).log()


def expected_step(method, rate):
    """(loss, {name: gradient}), with nothing but the equation on a stock encoder."""
    model = method.model
    classifier, _ = stock_twins(model)
    encoder = classifier.base_model
    W = method.parser.arcs.detach().double().requires_grad_()
    W_l = method.parser.relations.detach().double().requires_grad_()
    one = torch.ones(1, dtype=torch.float64)
    arcs, labelled, count = 0.0, 0.0, 0
    for example, sentence in enumerate(SENTENCES):
        ids = tiny_tokenizer()(" ".join(word for word, _, _ in sentence), return_tensors="pt")
        output = encoder(input_ids=ids["input_ids"], attention_mask=ids["attention_mask"])
        states = output[0][0]
        pooler = getattr(encoder, "pooler", None)
        root = states[0] if pooler is None else (pooler.dense(states[0])).tanh()
        vectors, place = [], 1
        for word, _, _ in sentence:
            tokens = []
            for _ in word.split():
                mask = kept(example, place, len(root), rate)
                tokens.append(states[place] * mask / (1 - rate))
                place += 1
            vectors.append(sum(tokens) / len(tokens))
        heads = [root, *vectors]
        for x, (_, head, relation) in zip(vectors, sentence, strict=True):
            x_1, h_1 = torch.cat([x, one]), torch.cat([heads[head], one])
            arcs = arcs + cross_entropy([x_1 @ W @ h for h in heads], head)
            scores = [x_1 @ W_l[r] @ h_1 for r in range(len(RELATIONS))]
            labelled = labelled + cross_entropy(scores, RELATIONS.index(relation))
            count += 1
    arcs, labelled = arcs / count, labelled / count
    (arcs + labelled).backward()
    named = {f"model.classifier.{n}": p.grad for n, p in classifier.named_parameters()}
    named |= {"parser.arcs": W.grad, "parser.relations": W_l.grad}
    grads = {n: g for n, g in named.items() if g is not None}
    parts = float(arcs.detach()), float(labelled.detach())
    return (sum(parts), grads), *parts


@pytest.mark.parametrize("rate", [0.0, 0.25])
@pytest.mark.parametrize("family", ["bert", "roberta", "distilbert"])
def test_loss_and_gradients(family, rate, treebank):
    method = method_of(tiny_model(family), treebank, parsing_dropout=rate)
    assert list(method.relations) == RELATIONS
    batch = batch_of(method, method.prepare(None, None))
    assert method.counts(batch) == {"words": 9}
    ours, step = our_step(method, batch)
    expected, arcs, labelled = expected_step(method, rate)
    assert_same(ours, expected)
    assert float(step.logged["loss_arcs"]) == pytest.approx(arcs, rel=1e-5)
    assert float(step.logged["loss_relations"]) == pytest.approx(labelled, rel=1e-5)
    head = {n for n in ours[1] if n.startswith("model.classifier.classifier")}
    assert not head  # the classification head takes no part


def test_all_weights_are_zero_at_first_and_every_head_is_as_likely(treebank):
    options = DependencyParsingOptions(treebank=treebank)
    method = DependencyParsing(tiny_model("bert").train(), tiny_tokenizer(), options)
    (loss, _), _ = our_step(method, batch_of(method, method.prepare(None, None)))
    heads = sum(len(s) * torch.tensor(len(s) + 1.0).log() for s in SENTENCES) / 9
    assert loss == pytest.approx(float(heads + torch.tensor(4.0).log()), rel=1e-5)


def test_dropout_depends_on_neither_the_batch_nor_the_padding_side():
    rng, ids = torch.tensor([SEED, EPOCH]), torch.tensor([7, 3])
    right = kept_states(torch.tensor([[1, 1, 1, 0], [1, 1, 1, 1]]), 10, 0.25, ids, rng)
    left = kept_states(torch.tensor([[0, 1, 1, 1]]), 10, 0.25, ids[:1], rng)
    assert torch.equal(left[0, 1:], right[0, :3])
    many = kept_states(torch.ones(4, 50, dtype=torch.int64), 64, 0.25, torch.arange(4), rng)
    assert float(many.float().mean()) == pytest.approx(0.75, abs=0.02)


@pytest.mark.parametrize("side", ["left", "right"])
def test_the_padding_side_changes_no_word(side, treebank):
    tokenizer = tiny_tokenizer()
    tokenizer.padding_side = side
    method = method_of(tiny_model("bert"), treebank)
    rows = method.prepare(None, None)
    batch = method.collate(Batch.from_dict(PaddingCollator(tokenizer)(rows)), rows)
    for i, row in enumerate(rows):
        attended = batch.attention_mask[i].bool()
        assert batch.columns["words"][i][attended].tolist() == row["words"]
        assert not batch.columns["words"][i][~attended].any()


def test_uas_and_las_by_hand(treebank, tmp_path):
    """Heads and relations are those with the largest scores, word by word."""
    text = Path(treebank).read_text().replace("obj", "iobj", 1)  # a relation that was not learned
    dev = tmp_path / "dev.conllu"
    dev.write_text(text)
    method = method_of(tiny_model("bert"), treebank, dev_treebank=str(dev)).eval()
    heads = labels = 0
    for row in method.dev_rows:
        x, candidates = method.vectors(batch_of(method, [row]), None)
        x, candidates = x[0].detach().double(), candidates[0].detach().double()
        W, W_l = (w.detach().double() for w in (method.parser.arcs, method.parser.relations))
        for d, (head, relation) in enumerate(zip(row["heads"], row["relations"], strict=True)):
            x_1 = torch.cat([x[d], torch.ones(1).double()])
            found = max(range(len(candidates)), key=lambda h: float(x_1 @ W @ candidates[h]))
            h_1 = torch.cat([candidates[found], torch.ones(1).double()])
            label = max(range(4), key=lambda r: float(x_1 @ W_l[r] @ h_1))
            heads += found == head
            labels += found == head and label == relation
    for size in (1, 2, 8):
        assert method.measure(size) == pytest.approx({"uas": heads / 9, "las": labels / 9})
    assert 0 < heads < 9
    none = method_of(tiny_model("bert"), treebank)
    assert none.measure(8) == {} and none.advice({}) == ""
    assert method.advice({"eval_uas": 0.5, "eval_las": 0.25}) == f"{dev}: UAS 50.00 %, LAS 25.00 %"


def trainer_of(folder, path, family="bert", **options):
    usual = {
        "learning_rate": 3e-3,
        "logging_steps": 1,
        "report_to": "none",
        "disable_tqdm": True,
        "use_cpu": True,
        "save_strategy": "no",
    }
    args = arguments_for("dependency_parsing")(
        str(folder), treebank=path, dev_treebank=path, **{**usual, **options}
    )
    return MaskTuningTrainer(
        model=tiny_model(family),
        args=args,
        train_dataset=examples(3, 1),
        eval_dataset=Dataset.from_list(examples(4, 2)),
        processing_class=tiny_tokenizer(),
    )


def test_it_learns_a_tiny_treebank_and_keeps_its_parser(tmp_path):
    path = write_treebank(tmp_path / "t.conllu")
    trainer = trainer_of(
        tmp_path / "out",
        path,
        max_steps=30,
        per_device_train_batch_size=12,
        eval_strategy="steps",
        eval_steps=15,
    )
    before = trainer.evaluate()
    assert before["eval_uas"] < 0.7
    trainer.train()
    measured = [log for log in trainer.state.log_history if "eval_uas" in log]
    assert [log["step"] for log in measured] == [15, 30]
    assert measured[-1]["eval_uas"] > 0.95 and measured[-1]["eval_las"] > 0.95
    trainer.save_model()
    saved = load_file(tmp_path / "out" / "method" / "model.safetensors")
    assert saved.keys() == {"parser.arcs", "parser.relations"}
    assert torch.equal(saved["parser.arcs"], trainer.method.parser.arcs)
    again = trainer_of(tmp_path / "again", path)
    again.method.load_weights(tmp_path / "out")
    assert again.evaluate()["eval_uas"] == measured[-1]["eval_uas"]
    for mine, theirs in zip(again.method.parameters(), trainer.method.parameters(), strict=True):
        assert torch.equal(mine, theirs)


def test_accumulation_changes_nothing(tmp_path):
    """4 micro-batches of 4 sentences are one batch of 16, whatever their numbers of words."""
    path = write_treebank(tmp_path / "t.conllu", 16)
    states = []
    for size, parts in ((16, 1), (4, 4)):
        trainer = trainer_of(
            tmp_path / f"{parts}",
            path,
            max_steps=2,
            optim="sgd",
            learning_rate=0.05,
            per_device_train_batch_size=size,
            gradient_accumulation_steps=parts,
        )
        trainer.train()
        losses = [log["loss"] for log in trainer.state.log_history if "loss" in log]
        states.append(
            (losses, torch.cat([p.detach().flatten() for p in trainer.method.parameters()]))
        )
    assert states[0][0] == pytest.approx(states[1][0], rel=1e-5)
    torch.testing.assert_close(states[0][1], states[1][1], rtol=1e-5, atol=1e-6)


def test_what_cannot_be_parsed_is_one_line(treebank, tmp_path):
    def make(model, **options):
        return DependencyParsing(model, tiny_tokenizer(), DependencyParsingOptions(**options))

    with pytest.raises(UsageError, match="--treebank is missing"):
        make(tiny_model("bert"))
    with pytest.raises(UsageError, match="no such file"):
        make(tiny_model("bert"), treebank=str(tmp_path / "none"))
    with pytest.raises(ValueError, match="bart is an encoder-decoder, which dependency_parsing"):
        make(tiny_model("bart"), treebank=treebank)
    slow = tiny_tokenizer()
    type(slow).is_fast, fast = property(lambda self: False), type(slow).is_fast
    try:
        with pytest.raises(ValueError, match="needs a fast tokenizer"):
            make(tiny_model("bert"), treebank=treebank)
    finally:
        type(slow).is_fast = fast
    with pytest.raises(ValueError, match=r"parsing_dropout is 1\.0: give 0 or more, below 1"):
        DependencyParsingOptions(parsing_dropout=1.0).check()


def test_class_weights_are_not_used(tmp_path):
    """The sentences have no labels to count."""
    path = write_treebank(tmp_path / "t.conllu")
    trainer = trainer_of(tmp_path / "out", path, class_weights="balanced")
    assert trainer._counts.class_weights is None
