"""A sample of original -> perturbed texts by epoch, for reading what the masked LM puts in."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback

from masktuning.data.collator import MaskTuningCollator

FILE = "perturbations.jsonl"
_EXAMPLES = 10


class PerturbationLog(TrainerCallback):
    """At the end of each epoch, perturbs the first ten training examples and writes them down.

    The masks are the ones of that epoch's training step; the predictions are the model's at the
    epoch's end, without dropout. One JSON object a line: epoch, example_id, label, original,
    perturbed, marked (with the changes as [before -> after]), and changes [[token index, original
    token, token put in], ...].
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
        if state.is_world_process_zero:
            self.records += self._perturb(args, epoch)
            partial = self.path.with_suffix(".partial")
            text = "".join(json.dumps(r, ensure_ascii=False) + "\n" for r in self.records)
            partial.write_text(text, encoding="utf-8")
            os.replace(partial, self.path)

    @torch.no_grad()
    def _perturb(self, args: Any, epoch: int) -> list[dict[str, Any]]:
        trainer, tokenizer = self.trainer, self.trainer.tokenizer
        dataset = trainer.train_dataset
        rows = [dataset[i] for i in range(min(_EXAMPLES, len(dataset)))]
        collator: MaskTuningCollator = trainer.data_collator
        batch = trainer._prepare_inputs(collator(rows))
        model = trainer.accelerator.unwrap_model(trainer.model)
        model.eval()
        rng = torch.tensor([args.seed, epoch], device=args.device)
        with trainer.compute_loss_context_manager():
            output, _ = model(
                **batch, phase="masked_lm", rng=rng, perturbation=trainer.perturbation
            )
        model.train()
        before_BL, after_BL = batch["input_ids"].tolist(), output.input_ids.tolist()
        decode = tokenizer.decode
        return [
            {
                "epoch": epoch,
                "example_id": int(batch["example_ids"][i]),
                "label": self.label_names[int(batch["labels"][i])],
                "original": decode(before_BL[i], skip_special_tokens=True),
                "perturbed": decode(after_BL[i], skip_special_tokens=True),
                "marked": marked(tokenizer, before_BL[i], after_BL[i]),
                "changes": [
                    [t, *tokenizer.convert_ids_to_tokens([old, new])]
                    for t, (old, new) in enumerate(zip(before_BL[i], after_BL[i], strict=True))
                    if old != new
                ],
            }
            for i in range(len(rows))
        ]


def marked(tokenizer: Any, before: list[int], after: list[int]) -> str:
    """The text of `before` with each token that `after` changed as [before -> after]."""
    parts, same = [], []
    for old, new in zip(before, after, strict=True):
        if old == new:
            same.append(old)
            continue
        parts.append(tokenizer.decode(same, skip_special_tokens=True))
        parts.append("[{} -> {}]".format(*(tokenizer.decode([i]).strip() for i in (old, new))))
        same = []
    parts.append(tokenizer.decode(same, skip_special_tokens=True))
    return " ".join(part.strip() for part in parts if part.strip())
