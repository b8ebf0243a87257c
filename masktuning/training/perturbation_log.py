"""A sample of original and perturbed texts by epoch, for reading what a method makes of texts."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from difflib import SequenceMatcher
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import TrainerCallback

from masktuning.config.files import write
from masktuning.data.batch import Batch

FILE = "perturbations.jsonl"
_EXAMPLES = 10


class PerturbationLog(TrainerCallback):
    """At the end of each epoch, writes down what the method makes of the first ten examples.

    The random numbers are those of that epoch's training step; the model is the one at the end of
    the epoch, without dropout. One JSON object per line: epoch, example_id, label, original,
    perturbed, marked (with each change as [before -> after]), and changes [[token index, original
    token, new token], ...], in which a text of another length has several tokens, or none, on
    either side. Methods that leave the texts alone write nothing.
    """

    def __init__(self, trainer: Any, folder: str | Path, label_names: list[str]) -> None:
        self.trainer = trainer
        self.path = Path(folder) / FILE
        self.label_names = label_names
        self.records: list[dict[str, Any]] = []

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.path.is_file():  # a resumed run keeps what the epochs before it wrote
            lines = self.path.read_text(encoding="utf-8").splitlines()
            records = [json.loads(line) for line in lines]
            self.records = [r for r in records if r["epoch"] < int(state.epoch or 0)]

    def on_epoch_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        # state.epoch has counted the epoch that ends, unless training stopped within it.
        epoch = max(math.ceil(state.epoch) - 1, 0)
        found = self._perturb(args, epoch)  # in every process: FSDP gathers the weights from all
        if state.is_world_process_zero and found:
            self.records += found
            write(
                self.path, "".join(json.dumps(r, ensure_ascii=False) + "\n" for r in self.records)
            )

    @torch.no_grad()
    def _perturb(self, args: Any, epoch: int) -> list[dict[str, Any]]:
        """The records of an epoch; none if the method leaves the texts alone."""
        trainer = self.trainer
        dataset = trainer.train_dataset
        rows = [dataset[i] for i in range(min(_EXAMPLES, len(dataset)))]
        batch = Batch.from_dict(trainer._prepare_inputs(trainer.collate(rows)))
        method = trainer.method
        rng = torch.tensor([args.seed, epoch], device=args.device)
        perturbed: list[Tensor | None] = []

        def perturb() -> Iterator[Tensor]:
            perturbed.append(method.perturb(batch, rng))
            yield batch.input_ids

        method.eval()
        with trainer.accelerator.autocast():  # as in the forward passes of training
            trainer.model(losses=perturb())  # FSDP's wrapper has to see a forward pass
        method.train()
        if perturbed[0] is None:
            return []
        return [self._record(epoch, batch, perturbed[0], i) for i in range(len(rows))]

    def _record(self, epoch: int, batch: Batch, perturbed_BL: Tensor, i: int) -> dict[str, Any]:
        tokenizer = self.trainer.tokenizer
        before, after = batch.input_ids[i].tolist(), perturbed_BL[i].tolist()
        return {
            "epoch": epoch,
            "example_id": int(batch.example_ids[i]),
            "label": self.label_names[int(batch.labels[i])],
            "original": text_of(tokenizer, before),
            "perturbed": text_of(tokenizer, after),
            "marked": marked(tokenizer, before, after),
            "changes": [
                [t, *(" ".join(tokenizer.convert_ids_to_tokens(ids)) for ids in (old, new))]
                for t, old, new in parts(tokenizer, before, after)
                if old != new
            ],
        }


def parts(
    tokenizer: Any, before: list[int], after: list[int]
) -> Iterator[tuple[int, list[int], list[int]]]:
    """The tokens of both texts, aligned: the index in `before`, and what stands in each.

    Texts of the same length, padding aside, are compared token by token.
    """
    pad = tokenizer.pad_token_id
    text, other = [i for i in before if i != pad], [i for i in after if i != pad]
    if len(text) == len(other):
        for t, (old, new) in enumerate(zip(before, after, strict=True)):
            yield t, [old], [new]
        return
    matcher = SequenceMatcher(None, text, other, autojunk=False)
    for _, start, end, new_start, new_end in matcher.get_opcodes():
        yield start, text[start:end], other[new_start:new_end]


def text_of(tokenizer: Any, ids: list[int]) -> str:
    """The text of token ids without special tokens, but with [UNK], which is part of a text."""
    hidden = set(tokenizer.all_special_ids) - {tokenizer.unk_token_id}
    return tokenizer.decode([i for i in ids if i not in hidden])


def marked(tokenizer: Any, before: list[int], after: list[int]) -> str:
    """The text of `before` with each token that `after` changed as [before -> after]."""
    found: list[str] = []
    same: list[int] = []
    for _, old, new in parts(tokenizer, before, after):
        if old == new:
            same += old
            continue
        found.append(text_of(tokenizer, same))
        found.append("[{} -> {}]".format(*(tokenizer.decode(ids).strip() for ids in (old, new))))
        same = []
    found.append(text_of(tokenizer, same))
    return " ".join(part.strip() for part in found if part.strip())
