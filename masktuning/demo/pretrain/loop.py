"""The pretraining loop behind `python -m masktuning.demo.pretrain`.

Order, masks and learning rate are functions of (seed, step), so that a state to resume from is
weights and moments alone.
"""

from __future__ import annotations

import contextlib
import math
import os
import platform
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from torch import Tensor
from transformers import AutoTokenizer

from masktuning.config.errors import UsageError
from masktuning.config.files import write_json
from masktuning.demo.pretrain import state
from masktuning.demo.pretrain.corpus import (
    Shuffled,
    Windows,
    documents,
    pack,
    packed_file,
    train_tokenizer,
)
from masktuning.demo.pretrain.masked_lm import MaskedLM, give_a_start, hits_of, new_model
from masktuning.demo.pretrain.workers import Workers

_QUICK_WINDOWS = 512  # some 10,000 masked tokens, so a standard error of half a point
_BETAS = (0.9, 0.98)


def prepare(arguments: Any, folder: Path) -> dict[str, Any]:
    """Makes the tokenizer and the packed files from the corpus; returns their counts."""
    share = arguments.held_out_share
    tokenizer = train_tokenizer(
        lambda: documents(arguments.corpus, held_out=False, share=share),
        arguments.vocab_size,
        arguments.max_length,
    )
    tokenizer.save_pretrained(folder / "tokenizer")
    data = pack(arguments.corpus, tokenizer, folder, share)
    data["bytes"] = sum(os.path.getsize(name) for name in arguments.corpus)
    data["vocabulary"] = len(tokenizer)
    return data


def learning_rate(step: int, arguments: Any) -> float:
    """Linear warm-up, constant, linear to 0; so a longer run begins as a shorter one does."""
    rising = (step + 1) / arguments.warmup_steps
    falling = (arguments.max_steps - step) / (arguments.decay_share * arguments.max_steps)
    return arguments.learning_rate * min(1.0, rising, falling)


def pretrain(arguments: Any) -> dict[str, Any]:
    """Trains, or goes on training, and returns what metrics.json holds.

    Raises:
        UsageError: if the corpus is too small, or the folder holds a run with other settings.
    """
    folder = Path(arguments.output_dir)
    settings = state.settings_of(arguments)
    workers = Workers()
    if arguments.batch_size < workers.count:
        raise UsageError(
            f"--batch_size {arguments.batch_size} is less than the {workers.count} processes that "
            "share it"
        )
    data: dict[str, Any] = {"data": {}}
    found = None
    if workers.first:  # alone: it may clear the folder, which no other must see half done
        found = state.check(folder, settings, arguments.overwrite)
        if found is None:
            folder.mkdir(parents=True, exist_ok=True)
            data["data"] = prepare(arguments, folder)
    workers.wait()
    found = state.newest(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder / "tokenizer")
    train, held_out = (
        Windows(packed_file(folder, name), arguments.max_length) for name in ("train", "held_out")
    )
    if train.count < arguments.batch_size or held_out.count < 1:
        raise UsageError(
            f"too little text: {train.count} training windows (a batch takes "
            f"{arguments.batch_size}) and {held_out.count} held out; give more, or a smaller "
            "--batch_size or --max_length, or a larger --held_out_share"
        )
    counts_V = np.bincount(train.tokens, minlength=len(tokenizer))
    counts_V[tokenizer.all_special_ids] = 0
    model = new_model(arguments, len(tokenizer), workers.device)
    optimizer = _optimizer(model, arguments.weight_decay)
    if found is None:
        done, metrics = 0, {"steps": 0, "seconds": 0.0, "starts": 0, "evaluations": [], **data}
        give_a_start(model, train.tokens, counts_V, arguments.seed)
    else:
        done, metrics = state.load(found, model, optimizer)
    metrics |= {"settings": settings, "starts": metrics["starts"] + 1}
    metrics |= _environment(model, workers.count)
    metrics["data"]["most_frequent_token"] = int(counts_V.argmax())
    run = _Run(arguments, folder, tokenizer, model, optimizer, metrics, workers)
    run.loop(done, Shuffled(train, arguments.batch_size, arguments.seed), held_out)
    if workers.first:
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
    workers.end()
    return metrics


@dataclass
class _Run:
    """A run's parts, and the loop over its steps."""

    arguments: Any
    folder: Path
    tokenizer: Any
    model: Any
    optimizer: Any
    metrics: dict[str, Any]
    workers: Workers

    def __post_init__(self) -> None:
        arguments = self.arguments
        self.lm = MaskedLM(self.model, self.tokenizer, arguments.mask_rate, arguments.precision)
        self.clock = time.monotonic()

    def loop(self, done: int, batches: Shuffled, held_out: Windows) -> None:
        arguments = self.arguments
        if done:
            self.say(f"going on after step {done}")
        else:
            self.evaluate(0, held_out, _QUICK_WINDOWS)
        since, totals = done, torch.zeros(3, device=self.lm.device)
        began = time.monotonic()
        for step in range(done, arguments.max_steps):
            totals += self.step(step, batches)
            done = step + 1
            if done % arguments.logging_steps == 0 or done == arguments.max_steps:
                loss, hits, rows = totals.tolist()
                self.check(loss, done)
                tokens = (done - since) * arguments.batch_size * arguments.max_length
                self.say(
                    f"step {done}/{arguments.max_steps}  loss {loss / rows:.3f}  "
                    f"accuracy {hits / rows:.3f}  lr {learning_rate(step, arguments):.2e}  "
                    f"{tokens / (time.monotonic() - began):,.0f} tokens/s"
                )
                since, began = done, time.monotonic()
                totals.zero_()
            if done % arguments.eval_steps == 0 and done < arguments.max_steps:
                self.evaluate(done, held_out, _QUICK_WINDOWS)
            if done % arguments.save_steps == 0 and done < arguments.max_steps:
                self.check(float(totals[0]), done)
                self.save(done)
        if self.metrics.get("final_step") != arguments.max_steps:
            self.metrics["final_step"] = arguments.max_steps
            self.evaluate(done, held_out, held_out.count, "final")
            self.save(done)

    def step(self, step: int, batches: Shuffled) -> Tensor:
        """One optimiser step; returns the sums of losses and of right predictions, and M."""
        arguments, workers = self.arguments, self.workers
        ids_B, windows_BL, epoch = batches.batch(step)
        rows = workers.share(windows_BL), workers.share(ids_B)
        output, targets = self.lm(*rows, arguments.seed, epoch, arguments.corruption)
        losses_M, hits_M = output.losses.detach(), hits_of(output, targets)
        totals = torch.stack(
            [losses_M.sum(), hits_M.sum().float(), losses_M.new_tensor(len(targets))]
        )
        workers.sum(totals)
        (output.losses.sum() / totals[2]).backward()
        workers.sum_gradients(self.model.parameters())
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(step, arguments)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return totals

    def check(self, loss: float, done: int) -> None:
        """Stops a run that has diverged before it writes over its last good state."""
        if not math.isfinite(loss):
            raise UsageError(
                f"the loss is {loss} at step {done}: the run has diverged. Start it again with a "
                "lower --learning_rate, and --overwrite or another --output_dir"
            )

    def say(self, line: str) -> None:
        if self.workers.first:
            print(line, flush=True)

    def evaluate(self, done: int, held_out: Windows, limit: int, name: str = "") -> None:
        """Adds figures on at most `limit` held-out windows to the metrics."""
        if not self.workers.first:
            return
        result = self.lm.evaluate(held_out, limit, self.metrics["data"]["most_frequent_token"])
        if name:
            self.metrics[name] = result
        self.metrics["evaluations"].append({"step": done, **result})
        self.say(
            f"step {done}  held out: accuracy {result['accuracy']:.4f}  perplexity "
            f"{result['perplexity']:.2f}  (most frequent token {result['unigram_accuracy']:.4f})"
        )

    def save(self, done: int) -> None:
        now = time.monotonic()
        self.metrics["seconds"] += now - self.clock
        self.metrics["steps"] = done
        self.clock = now
        if not self.workers.first:
            return
        parts = (self.model, self.tokenizer, self.optimizer)
        state.save(self.folder, done, *parts, self.metrics)
        write_json(self.folder / state.METRICS, self.metrics)


def _optimizer(model: Any, weight_decay: float) -> torch.optim.AdamW:
    decayed = [p for p in model.parameters() if p.dim() > 1]
    others = [p for p in model.parameters() if p.dim() <= 1]
    groups: list[dict[str, Any]] = [{"params": decayed, "weight_decay": weight_decay}]
    groups.append({"params": others})
    return torch.optim.AdamW(groups, lr=0.0, betas=_BETAS, weight_decay=0.0, fused=True)


def _environment(model: Any, workers: int) -> dict[str, Any]:
    """What the card says of the machine and the model."""
    hardware = f"{platform.machine()} CPU"
    with contextlib.suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
        hardware = names[0] if names else hardware
    if model.device.type == "cuda":
        hardware = f"{torch.cuda.get_device_name(model.device)}, {workers} of them"
    else:
        hardware += f", {workers * torch.get_num_threads()} threads"
    versions = {"torch": torch.__version__, "transformers": transformers.__version__}
    parameters = sum(p.numel() for p in model.parameters())
    return {"hardware": hardware, "versions": versions, "parameters": parameters}
