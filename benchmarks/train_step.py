"""A training step of a BERT-base-sized model: fine-tuning, and Mask-tuning on each back end.

    python benchmarks/train_step.py result.json            # a small model where there is no GPU

Random weights and tokens. Alternating, median of the ratios to plain fine-tuning. The file is
written anew after every round, so that a run which is cut off leaves what it had.
Shapes: B examples, L tokens, M masked positions.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import torch
from transformers import BertConfig, BertForMaskedLM, BertForSequenceClassification

sys.path.insert(0, str(Path(__file__).parent))
from timing import environment, half_dtype, write_json

from masktuning.data.batch import Batch
from masktuning.methods.base import Method, NoOptions
from masktuning.methods.finetuning import Finetuning
from masktuning.methods.mask_tuning import MaskTuning, MaskTuningOptions
from masktuning.methods.step import Step
from masktuning.modeling.shared_encoder import MaskTuningModel
from masktuning.ops import backends
from masktuning.training.backward import backward_each

GPU = torch.cuda.is_available()
HALF = half_dtype() if GPU else torch.bfloat16
DEVICE = torch.device("cuda" if GPU else "cpu")
SIZE = {} if GPU else {"hidden_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2}
B, L, ROUNDS = (32, 128, 20) if GPU else (8, 64, 10)


class BertTokens:
    """What the methods ask of BERT's tokenizer."""

    all_special_ids: ClassVar[list[int]] = [0, 100, 101, 102, 103]
    unk_token_id, mask_token_id = 100, 103

    def __len__(self) -> int:
        return 30522


def make_batch(vocabulary: int) -> Batch:
    """A batch without padding, of whose tokens 5 % are to be masked."""
    count = max(1, round(0.05 * (L - 2)))
    maskable = torch.ones(B, L, dtype=torch.bool)
    maskable[:, 0] = maskable[:, -1] = False
    tensors = {
        "input_ids": torch.randint(1000, vocabulary, (B, L)),
        "labels": torch.randint(0, 2, (B,)),
        "maskable": maskable,
        "example_ids": torch.arange(B),
        "offsets": count * torch.arange(B + 1),
    }
    moved = {name: tensor.to(DEVICE) for name, tensor in tensors.items()}
    return Batch(**moved, num_masked=count * B)


def make_steps() -> dict[str, Callable[[], None]]:
    """By name, one optimiser step on the same model."""
    config = BertConfig(num_labels=2, **SIZE)
    model = MaskTuningModel(BertForSequenceClassification(config), BertForMaskedLM(config))
    model.to(DEVICE).train()
    optimizer = torch.optim.AdamW(model.parameters(), 1e-5, fused=GPU)
    batch = make_batch(config.vocab_size)
    counts = torch.tensor([float(batch.num_masked), float(B)], device=DEVICE)
    named = dict(zip(("masked", "labels"), counts.unbind(), strict=True))
    rng = torch.tensor([1, 0], device=DEVICE)

    def step(method: Method, name: str) -> Callable[[], None]:
        def run() -> None:
            with backends.use(name), torch.autocast(DEVICE.type, HALF, enabled=GPU):
                losses = method.losses(batch, Step(rng, named))
                backward_each(method, method, losses, lambda loss, _: loss.backward())
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

        return run

    tokens: Any = BertTokens()
    names = [n for n in ("cuda", "triton", "cpp", "reference") if not backends.available()[n]]
    names = [n for n in names if n != "cpp" or not GPU]
    steps = {"finetuning": step(Finetuning(model, tokens, NoOptions()), "auto")}
    method = MaskTuning(model, tokens, MaskTuningOptions(alpha=0.3))
    return steps | {f"mask_tuning, {n}": step(method, n) for n in names}


def seconds(call: Callable[[], None]) -> float:
    if GPU:
        torch.cuda.synchronize()
    start = time.perf_counter()
    call()
    if GPU:
        torch.cuda.synchronize()
    return time.perf_counter() - start


def summary(rounds: list[dict[str, float]]) -> dict[str, dict[str, float]]:
    """By name, the median milliseconds and the median ratio to plain fine-tuning."""
    return {
        name: {
            "ms": 1e3 * statistics.median(r[name] for r in rounds),
            "over_finetuning": statistics.median(r[name] / r["finetuning"] for r in rounds),
        }
        for name in rounds[0]
    }


if __name__ == "__main__":
    path = sys.argv[1] if len(sys.argv) > 1 else None
    result = {"environment": environment(), "B": B, "L": L, "model": SIZE or "bert-base"}
    steps = make_steps()
    for call in steps.values():
        for _ in range(3):
            seconds(call)
    rounds: list[dict[str, float]] = []
    for _ in range(ROUNDS):
        rounds.append({name: seconds(call) for name, call in steps.items()})
        write_json(path, {**result, "rounds": len(rounds), **summary(rounds)})
    for name, row in summary(rounds).items():
        print(f"{name}: {row['ms']:.1f} ms, {row['over_finetuning']:.2f} of fine-tuning")
