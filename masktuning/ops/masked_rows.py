"""What the ops on masked positions work on: the rows, and how their tokens are chosen.

The public ops take these as single arguments. Inside, they travel as the two tuples below, whose
elements are in the order of the public arguments.

Shapes: B examples, L tokens, M masked positions, N banned ids, V vocabulary.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from masktuning.ops.checks import IGNORE_INDEX, check_tensor, runs_directly

MAX_TOP_K = 64


class MaskedRows(NamedTuple):
    """The masked positions of a batch: one row of logits belongs to each."""

    input_ids: Tensor
    """[B, L] int64, the original tokens."""
    positions: Tensor
    """[M] int64, b * L + t ascending; -1 for surplus rows."""
    targets: Tensor
    """[M] int64, the original tokens; -100 for rows without a loss."""
    example_ids: Tensor
    """[B] int64."""
    rng: Tensor
    """[2] int64, seed and epoch."""


class TokenChoice(NamedTuple):
    """Which tokens may be substituted, and how one of them is chosen."""

    banned_ids: Tensor | None
    """[N] int64, ids that may not be substituted, or None."""
    top_k: int
    """1 takes the argmax, more draws among the k largest logits."""
    temperature: float
    """Divides the logits before the draw."""
    tokenizer_size: int | None
    """Ids from here on may not be substituted either; None bans none of them."""


def check_rows(rows: MaskedRows, M: int, device: torch.device) -> None:
    """Raises ValueError naming the tensor whose dtype, shape or device does not fit M rows."""
    input_ids, positions, targets, example_ids, rng = rows
    check_tensor("input_ids", input_ids, torch.int64, (-1, -1), device)
    check_tensor("positions", positions, torch.int64, (M,), device)
    check_tensor("targets", targets, torch.int64, (M,), device)
    check_tensor("example_ids", example_ids, torch.int64, (input_ids.shape[0],), device)
    check_tensor("rng", rng, torch.int64, (2,), device)


def check_choice(choice: TokenChoice, device: torch.device) -> None:
    """Raises ValueError naming the argument that is of a wrong kind or out of range."""
    banned_ids, top_k, temperature, tokenizer_size = choice
    if banned_ids is not None:
        check_tensor("banned_ids", banned_ids, torch.int64, (-1,), device)
    if not 1 <= top_k <= MAX_TOP_K:
        raise ValueError(f"top_k must be in 1..{MAX_TOP_K}, not {top_k}")
    if not temperature > 0:
        raise ValueError(f"temperature must be above 0, not {temperature}")
    if tokenizer_size is not None and tokenizer_size < 1:
        raise ValueError(f"tokenizer_size must be at least 1, not {tokenizer_size}")


def check_values(kernels: str, rows: MaskedRows, banned_ids: Tensor | None, V: int) -> None:
    """Raises ValueError for a value that does not fit V logits; checks nothing on a GPU.

    There, a check would wait for the device. The C++ kernels check the values themselves, with the
    same messages, in a fraction of the time.
    """
    if rows.input_ids.device.type != "cpu" or kernels == "cpp" or not runs_directly(rows.targets):
        return
    positions, targets = rows.positions, rows.targets
    outside = (targets != IGNORE_INDEX) & ((targets < 0) | (targets >= V))
    if bool(outside.any()):
        bad = int(targets[outside][0])
        raise ValueError(f"targets holds {bad}, outside the vocabulary of {V}")
    if bool((positions >= rows.input_ids.numel()).any()):
        raise ValueError(f"positions must be below B * L = {rows.input_ids.numel()}")
    before, after = positions[:-1], positions[1:]
    falling = (after >= 0) & ((before < 0) | (after <= before))
    if bool(falling.any() | (positions < -1).any()):
        raise ValueError(
            "positions must ascend, as those of sample_masks do, with -1 at the end only"
        )
    if banned_ids is not None and bool(((banned_ids < 0) | (banned_ids >= V)).any()):
        raise ValueError(f"banned_ids must lie in the vocabulary of {V}")
