"""The one type of a training batch: its fields are listed here and nowhere else.

Shapes: B examples, L tokens.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from torch import Tensor


@dataclass
class Batch:
    """A padded batch: what the encoder reads, the labels, and what a method added.

    Data loaders and Trainer handle batches as mappings, so a collator returns `as_dict()` and the
    training step makes a `Batch` of it again.
    """

    input_ids: Tensor
    """[B, L] int64, the original tokens."""
    labels: Tensor
    """[B] int64; -100 for an example that the losses ignore."""
    example_ids: Tensor
    """[B] int64, the rows of the training set; they determine the masks."""
    attention_mask: Tensor | None = None
    """[B, L], or None where nothing is padded."""
    token_type_ids: Tensor | None = None
    """[B, L], for families that distinguish the two texts of a pair by it."""
    maskable: Tensor | None = None
    """[B, L] bool, false for padding and special tokens; None if the method masks nothing."""
    offsets: Tensor | None = None
    """[B + 1] int64, the exclusive sum of the numbers of tokens to mask."""
    num_masked: int = 0
    """The last of `offsets` as a Python int, so that no device is asked for it."""
    max_masked: int = 0
    """The largest number of tokens to mask in one example, or 0 if it is not known. The last layer
    may be computed at only so many positions per example; a smaller number gives wrong states."""
    rng: Tensor | None = None
    """[2] int64 on the CPU, the seed and the epoch. It is there only while a batch is collated:
    `as_dict` leaves it out, since a training step has its own."""
    columns: dict[str, Tensor] = field(default_factory=dict)
    """What the method made of its own columns, by their names."""

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Batch:
        """The batch of a mapping that `as_dict` or a collator returned."""
        own = {k: v for k, v in values.items() if k in NAMES}
        return cls(**own, columns={k: v for k, v in values.items() if k not in NAMES})

    def as_dict(self) -> dict[str, Any]:
        """All fields that are not None, then the method's columns."""
        values = {name: getattr(self, name) for name in NAMES}
        return {**{k: v for k, v in values.items() if v is not None}, **self.columns}

    def texts(self) -> dict[str, Tensor | None]:
        """The keyword arguments that the encoder takes alongside the token ids."""
        return {"attention_mask": self.attention_mask, "token_type_ids": self.token_type_ids}


OF_ROWS = ("input_ids", "labels", "attention_mask", "token_type_ids")
"""The fields that a tokenised row may hold; the others are computed for the whole batch."""
NAMES = tuple(one.name for one in fields(Batch) if one.name not in ("rng", "columns"))
"""The field names, a tensor first: Accelerate reads a batch's size from its first value."""
