"""What the tests of the debiasing methods share: a step of ours, and the stock model in float64."""

import torch
from families import tiny_model
from pair_tokenizers import pair_rows, pair_tokenizer
from stock_step import stock_twins

from masktuning.data.batch import Batch
from masktuning.data.collator import PaddingCollator
from masktuning.methods.bias.method import COLUMN
from masktuning.methods.step import Step

BIAS = [[0.7, 0.2, 0.1], [0.1, 0.6, 0.3], [0.98, 0.01, 0.01], [0.2, 0.3, 0.5]]
LABELS = [0, 2, 0, 1]
NLI = {0: "entailment", 1: "neutral", 2: "contradiction"}
PAIRS = [
    ("w1 w2 w3 w4", "w2 w3"),
    ("w5 w6 w7", "w8 w5 W5"),
    ("w9 w10 w11 w12 w13 w14", "w14 w9"),
    ("w20 w21", "w22 w23 w24 w25"),
]
FAMILIES = ("bert", "roberta", "distilbert")


def method_of(method_class, family="bert", names=NLI, **options):
    model = tiny_model(family, num_labels=len(names), id2label=dict(names)).train()
    return method_class(model, pair_tokenizer(family), method_class.Options(**options))


def rows_of(method, pairs=PAIRS, labels=LABELS, bias=BIAS):
    rows = pair_rows(method.tokenizer, pairs, labels)
    if bias is None:
        return rows
    logs = torch.tensor(bias, dtype=torch.float64).log().tolist()
    return [{**row, COLUMN: log} for row, log in zip(rows, logs, strict=True)]


def batch_of(method, rows, cache=None):
    prepared = method.prepare(rows, cache)
    chosen = [prepared[i] for i in range(len(rows))]
    return method.collate(Batch.from_dict(PaddingCollator(method.tokenizer)(chosen)), chosen)


def step_of(method, batch):
    """(loss, {name: gradient}, step) of one step; a gradient's name is that in the method."""
    method.zero_grad()
    counts = {name: torch.as_tensor(n).float() for name, n in method.counts(batch).items()}
    step = Step(torch.tensor([1, 0]), counts)
    (loss,) = method.losses(batch, step)
    loss.backward()
    gradients = {n: p.grad for n, p in method.named_parameters() if p.grad is not None}
    return float(loss.detach()), gradients, step


class Stock:
    """The stock classifier in float64, its logits and what its head reads first."""

    def __init__(self, method, batch):
        self.classifier = stock_twins(method.model)[0].eval()
        self.own = {
            name: p.detach().double().requires_grad_()
            for name, p in method.named_parameters()
            if not name.startswith("model.")
        }
        inputs = {"input_ids": batch.input_ids, "attention_mask": batch.attention_mask}
        if batch.token_type_ids is not None:
            inputs["token_type_ids"] = batch.token_type_ids
        self.logits = self.classifier(**inputs).logits
        output = self.classifier.base_model(**inputs)
        pooler = getattr(output, "pooler_output", None)
        self.pooled = output.last_hidden_state[:, 0] if pooler is None else pooler

    def gradients(self, loss):
        """By the names of the method's parameters."""
        loss.backward()
        found = {f"model.classifier.{n}": p.grad for n, p in self.classifier.named_parameters()}
        found |= {name: p.grad for name, p in self.own.items()}
        return {name: grad for name, grad in found.items() if grad is not None}


def plain(method, batch):
    """The cross-entropy of plain fine-tuning on the same batch."""
    logits = Stock(method, batch).logits.detach()
    return float(-logits.log_softmax(-1)[torch.arange(len(logits)), batch.labels].mean())
