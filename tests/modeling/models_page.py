"""Writes docs/models.md from what loading a tiny model of each family shows.

python tests/modeling/models_page.py
"""

from __future__ import annotations

import sys
import warnings
from pathlib import Path

import transformers
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_MASKED_LM_MAPPING_NAMES as MASKED_LM,
)
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES as CLASSIFIERS,
)

from masktuning.modeling.loading import UNSUPPORTED

PAGE = "docs/models.md"
_HEAD = """\
# Encoder families

Written by `python tests/modeling/models_page.py` with transformers {version};
a test keeps it fresh.
Every family that transformers has both a masked-LM and a sequence-classification class for.

- **fused**: the head's last layer is linear, so its product goes through `masked_lm_head`, with
  the loss and the substitution in the row kernel.
- **stock head**: the masked rows go through the family's own head, then through the row kernel.
- **4-D mask**: the attention mask is made once for both passes; other families get the usual one.

{supported} of {count} are supported, and {fused} of them fused. Each one in tiny takes a training
step that a test compares with stock models, loss and gradients; is saved, reloaded with plain
transformers, and resumed.

| family (`model_type`) | masked LM | head | mask |
|---|---|---|---|
"""


def families() -> list[str]:
    """The model types of transformers with both classes."""
    return sorted(set(MASKED_LM) & set(CLASSIFIERS))


def page() -> str:
    """The page's text."""
    from families import tiny_model

    rows, fused = [], 0
    for name in families():
        if name in UNSUPPORTED:
            rows.append(f"| `{name}` | `{MASKED_LM[name]}` | unsupported: {UNSUPPORTED[name]} | |")
            continue
        model = tiny_model(name)
        fused += model.mlm_head.fused
        head = "fused" if model.mlm_head.fused else "stock head"
        mask = "4-D" if model._takes_4d_mask else "2-D"
        if name == "fnet":
            mask = "none: a text's logits depend on its batch's padding"
        rows.append(f"| `{name}` | `{MASKED_LM[name]}` | {head} | {mask} |")
    count = len(rows)
    head = _HEAD.format(
        version=transformers.__version__,
        supported=count - len(UNSUPPORTED),
        count=count,
        fused=fused,
    )
    return head + "\n".join(rows) + "\n"


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parent))
    warnings.simplefilter("ignore")
    target = Path(__file__).parents[2] / PAGE
    target.parent.mkdir(exist_ok=True)
    target.write_text(page(), encoding="utf-8")
