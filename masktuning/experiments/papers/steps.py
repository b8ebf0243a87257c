"""How long training steps take on this machine: a model of a shape, and each method.

Nothing is downloaded: a model of the shape has random weights, and methods are timed with the
demo's model through their own code.

Shapes: B rows, L tokens.
"""

from __future__ import annotations

import statistics
import time
from contextlib import redirect_stdout
from dataclasses import dataclass
from functools import cache
from io import StringIO
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
import torch.nn.functional as F
from transformers import (
    AutoModelForSequenceClassification,
    BartConfig,
    BertConfig,
    PrinterCallback,
    ProgressCallback,
    RobertaConfig,
    TrainerCallback,
)

from masktuning.evaluation.quiet import less_output
from masktuning.training.build import build_trainer, training_examples
from masktuning.training.job import read_job
from masktuning.training.run import run
from masktuning.training.stages import pending_stages, started

SHAPES: dict[str, Any] = {
    "bert": BertConfig,
    "roberta": lambda: RobertaConfig(
        vocab_size=50265, max_position_embeddings=514, type_vocab_size=1
    ),
    "bart": lambda: BartConfig(
        d_model=768,
        **dict.fromkeys(("encoder_layers", "decoder_layers"), 6),
        **dict.fromkeys(("encoder_attention_heads", "decoder_attention_heads"), 12),
        **dict.fromkeys(("encoder_ffn_dim", "decoder_ffn_dim"), 3072),
    ),
}
"""The configurations of bert-base-uncased, roberta-base and facebook/bart-base."""
TOKENS = {"sst2": 13, "mnli": 39, "qqp": 30}
"""The mean length of a training text in tokens of bert-base-uncased (benchmarks/lengths.json)."""
_STEPS = 4
_SHORT = """--max_steps 2 --save_strategy no --eval_strategy no --disable_tqdm true --report_to none
--logging_steps 1000""".split()
_CPU_TOKENS = 1024
"""A processor is timed with at most so many tokens in a step; larger steps take in proportion."""


@cache
def _model(shape: str) -> Any:
    """A classifier of a shape, with random weights, on the device that would train it."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    return AutoModelForSequenceClassification.from_config(SHAPES[shape]()).to(device)


def shape_seconds(shape: str, rows: int, length: int) -> float:
    """The seconds of one step of plain fine-tuning in float32 with `rows` texts of a length.

    One forward and backward pass and one step of AdamW, after one of each that warms up.
    """
    model = _model(shape).train()
    most = rows if model.device.type == "cuda" else max(1, _CPU_TOKENS // length)
    timed = min(rows, most)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5)
    ids_BL = torch.randint(10, 90, (timed, length), device=model.device)
    if model.config.eos_token_id is not None:  # where BART's classifier reads
        ids_BL[:, -1] = model.config.eos_token_id
    labels_B = torch.zeros(timed, dtype=torch.int64, device=model.device)
    few, seconds = max(1, timed // 8), []
    for B in (few, timed):
        start = _now(model.device)
        F.cross_entropy(model(input_ids=ids_BL[:B]).logits, labels_B[:B]).backward()
        optimizer.step()
        optimizer.zero_grad()
        seconds.append(_now(model.device) - start)
    return seconds[-1] * rows / timed


@dataclass(frozen=True)
class Timed:
    """What a few steps of a method showed."""

    seconds: float
    """Of one optimizer step."""
    rows: int
    """The training examples of the task."""
    examples: int
    """Those that the method trains on, with copies that it adds."""


def method_step(words: list[str], embedded: Path) -> Timed:
    """Takes a few steps of the run that the words of `masktuning.train` say.

    The earlier trainings that the method needs take two steps each. Nothing is kept or printed.
    """
    with TemporaryDirectory() as folder, redirect_stdout(StringIO()), less_output(False, False):
        job = read_job([*words, *_SHORT, "--output_dir", folder], embedded, warn=False)
        for stage in pending_stages(job, fresh=True):
            run(stage, summary=False)
        job.training.max_steps = _STEPS
        trainer, sets = build_trainer(started(job))
        for callback in (PrinterCallback, ProgressCallback):
            trainer.remove_callback(callback)
        clock = _StepClock()
        trainer.add_callback(clock)
        trainer.train()
        rows = next(len(one.data) for one in sets if one.texts.role == "train")
        return Timed(statistics.median(clock.seconds[1:]), rows, training_examples(trainer))


def device_name() -> str:
    """What the times were measured on."""
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    threads = torch.get_num_threads()
    return f"a processor with {threads} thread{'s' if threads > 1 else ''}"


class _StepClock(TrainerCallback):
    """The seconds of each optimiser step."""

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self._began = 0.0

    def on_step_begin(self, args: Any, *rest: Any, **kwargs: Any) -> None:
        self._began = _now(args.device)

    def on_step_end(self, args: Any, *rest: Any, **kwargs: Any) -> None:
        self.seconds.append(_now(args.device) - self._began)


def _now(device: torch.device) -> float:
    """The time at which the device has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()
