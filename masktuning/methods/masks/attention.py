"""The attention that a fine-tuned classifier pays each token, by label.

Shapes: B examples, A heads, L tokens, V token ids, C labels, n rows of the training set.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import AutoModelForSequenceClassification, PreTrainedTokenizerBase

from masktuning.config.errors import UsageError
from masktuning.data.collator import PaddingCollator

STAGE = "keywords"
"""The name of the stage that fine-tunes the classifier, and of the folder of its checkpoint."""
_BATCH = 16


@torch.no_grad()
def attention_by_label(
    train: Any,
    labels: NDArray[Any],
    folder: Path,
    tokenizer: PreTrainedTokenizerBase,
    device: torch.device,
) -> NDArray[np.float64]:
    """[C, V] the mean attention that the first token pays each token in the texts of each label.

    The attention is that of the last layer, summed over its heads. The mean is over all occurrences
    of the token in the texts with the label; a token that does not occur there has 0.

    Args:
        train: n tokenised rows.
        labels: [n] label ids; rows with a negative one are left out.
        folder: the classifier's checkpoint.
        tokenizer: that of the rows.
        device: where the classifier runs.

    Raises:
        UsageError: if there is no checkpoint, or the model does not show its attention.
    """
    if not (folder / "config.json").is_file():
        raise UsageError(
            f"{folder}: no checkpoint; --mask_policy keywords_attention needs a fine-tuned "
            "classifier there, which `python -m masktuning.train` trains first"
        )
    model = AutoModelForSequenceClassification.from_pretrained(folder, attn_implementation="eager")
    model = model.to(device).eval()
    cells = int(labels.max() + 1) * model.config.vocab_size
    sums, counts = np.zeros(cells), np.zeros(cells)
    collate = PaddingCollator(tokenizer)
    lengths = [len(train[i]["input_ids"]) for i in range(len(train))]
    order = [i for i in np.argsort(lengths, kind="stable").tolist() if labels[i] >= 0]
    for start in range(0, len(order), _BATCH):
        chosen = order[start : start + _BATCH]
        texts = collate([train[i] for i in chosen])
        mask_BL = texts.get("attention_mask", torch.ones_like(texts["input_ids"])).bool()
        attention_BL = _attention(model, texts, mask_BL.int().argmax(1), device)
        rows_BL = torch.from_numpy(labels[chosen])[:, None] * model.config.vocab_size
        ids = (rows_BL + texts["input_ids"])[mask_BL].numpy()
        sums += np.bincount(ids, attention_BL[mask_BL].double().numpy(), cells)
        counts += np.bincount(ids, minlength=cells)
    return (sums / np.maximum(counts, 1)).reshape(-1, model.config.vocab_size)


def _attention(model: Any, texts: dict[str, Any], first_B: Tensor, device: torch.device) -> Tensor:
    """[B, L] the last layer's attention from each text's first token, summed over the heads."""
    names = ("input_ids", "attention_mask", "token_type_ids")
    inputs = {name: texts[name].to(device) for name in names if name in texts}
    found = getattr(model(**inputs, output_attentions=True), "attentions", None)
    if not found or found[-1] is None:
        raise UsageError(
            f"--mask_policy keywords_attention: {model.config.model_type} does not show the "
            "attention of its encoder; use --mask_policy keywords"
        )
    attention_BL: Tensor = found[-1].sum(1)[torch.arange(len(first_B)), first_B.to(device)]
    return attention_BL.float().cpu()
