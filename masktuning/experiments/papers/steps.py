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
        encoder_layers=6,
        decoder_layers=6,
        encoder_attention_heads=12,
        decoder_attention_heads=12,
        encoder_ffn_dim=3072,
        decoder_ffn_dim=3072,
    ),
}
"""The configurations of bert-base-uncased, roberta-base and facebook/bart-base."""
TOKENS = {"sst2": 13, "mnli": 39, "qqp": 30}
"""The mean length of a training text in tokens of bert-base-uncased (benchmarks/lengths.json)."""
_STEPS = 4
_SHORT = """--max_steps 2 --save_strategy no --eval_strategy no --disable_tqdm true --report_to none
--logging_steps 1000 --train_sampling_strategy random""".split()
_CPU_TOKENS = 256
"""On a processor at most so many tokens are timed; larger batches take in proportion."""


class ShapeTimer:
    """Times steps of plain fine-tuning in float32 with a model of a shape and random weights.

    On the device that would train it, each size of batch is passed forward and backward once. The
    update by AdamW is timed once, since it does not depend on the batch.
    """

    def __init__(self, shape: str) -> None:
        self._device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        model = AutoModelForSequenceClassification.from_config(SHAPES[shape]())
        self._model: Any = model.to(self._device).train()
        optimizer = torch.optim.AdamW(self._model.parameters(), lr=1e-5)
        self._passes(4, 8)  # which warms up, as the first update does
        optimizer.step()
        start = _now(self._device)
        optimizer.step()
        self._update = _now(self._device) - start
        self._known: dict[tuple[int, int], float] = {}

    def seconds(self, rows: int, length: int) -> float:
        """The seconds of one step with so many rows of a length, which are measured once."""
        if (rows, length) not in self._known:
            few = max(1, _CPU_TOKENS // length)
            timed = rows if self._device.type == "cuda" else min(rows, few)
            passes = self._passes(timed, length) * rows / timed
            self._known[rows, length] = passes + self._update
        return self._known[rows, length]

    def _passes(self, rows: int, length: int) -> float:
        """The seconds of a forward and a backward pass."""
        ids_BL = torch.randint(10, 90, (rows, length), device=self._device)
        if self._model.config.eos_token_id is not None:  # where BART's classifier reads
            ids_BL[:, -1] = self._model.config.eos_token_id
        labels_B = torch.zeros(rows, dtype=torch.int64, device=self._device)
        start = _now(self._device)
        F.cross_entropy(self._model(input_ids=ids_BL).logits, labels_B).backward()
        return _now(self._device) - start


@dataclass(frozen=True)
class Timed:
    """What a few steps of a method showed."""

    seconds: float
    """Of one optimizer step."""
    copies: float
    """The examples that the method trains on for one of the task's, more than 1 if it adds some."""


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
        copies = training_examples(trainer) / rows
        return Timed(statistics.median(clock.seconds[1:]), copies)


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
