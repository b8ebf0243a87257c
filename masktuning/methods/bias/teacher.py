"""What an earlier training's classifier predicts for the training examples.

Shapes: B examples, C classes, N examples of the training set.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from accelerate import PartialState
from transformers import PreTrainedTokenizerBase

from masktuning.config.errors import UsageError
from masktuning.data.collator import PaddingCollator
from masktuning.methods.bias.kept import kept_table, key_of, plain_rows
from masktuning.modeling.shared_encoder import MaskTuningModel

WEIGHTS = "model.safetensors"
_BATCH = 64  # examples of similar length


def teacher_log_probabilities(
    train: Any, teacher: Path, tokenizer: PreTrainedTokenizerBase, cache: Path
) -> list[list[float]]:
    """The teacher's log-probabilities [N, C] of the labels, computed once and kept in `cache`.

    Args:
        train: the tokenised training set.
        teacher: the checkpoint folder of the earlier training.
        tokenizer: what made the rows.
        cache: the folder to keep them in.

    Raises:
        UsageError: if there is no checkpoint.
    """
    if not (teacher / WEIGHTS).is_file():
        raise UsageError(
            f"{teacher} holds no teacher: python -m masktuning.train trains it; from Python, first "
            "train with the method finetuning and save the model there"
        )
    rows = plain_rows(train)
    with (teacher / WEIGHTS).open("rb") as file:
        weights = hashlib.file_digest(file, "sha256").hexdigest()
    return kept_table(
        cache,
        f"predictions-{teacher.name}",
        key_of(rows, weights),
        lambda: _predicted(rows, teacher, tokenizer),
    )


@torch.no_grad()
def _predicted(
    rows: Sequence[dict[str, Any]], teacher: Path, tokenizer: PreTrainedTokenizerBase
) -> np.ndarray:
    """[N, C] float32, the teacher's log-probabilities, computed on the device of the run."""
    device = PartialState().device
    model = MaskTuningModel.from_pretrained(teacher, mlm_head=False).to(device).eval()
    pad = PaddingCollator(tokenizer)
    order = sorted(range(len(rows)), key=lambda i: len(rows[i]["input_ids"]))
    found = []
    for start in range(0, len(order), _BATCH):
        batch = pad([rows[i] for i in order[start : start + _BATCH]])
        inputs = {name: tensor.to(device) for name, tensor in batch.items() if name != "labels"}
        found.append(F.log_softmax(model(**inputs).logits.float(), -1).cpu())
    table = torch.empty_like(torch.cat(found))
    table[order] = torch.cat(found)
    return table.numpy()
