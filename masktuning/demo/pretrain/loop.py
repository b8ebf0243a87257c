"""The training loop of `python -m masktuning.demo.pretrain`.

Order, masks and learning rate are functions of seed and step, so a state to resume from consists
of the weights and the optimizer's moments.
"""

from __future__ import annotations

import math
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from masktuning.config.errors import UsageError
from masktuning.config.files import write_json
from masktuning.demo.pretrain import state
from masktuning.demo.pretrain.corpus import Shuffled
from masktuning.demo.pretrain.masked_lm import MaskedLM, correct_predictions
from masktuning.demo.pretrain.prepare import Setup, set_up
from masktuning.demo.pretrain.workers import Workers

_QUICK_WINDOWS = 512  # about 10,000 masked tokens: a standard error of half a percentage point


def pretrain(arguments: Any) -> dict[str, Any]:
    """Trains, or resumes the run in the output folder; returns what its metrics.json holds.

    Raises:
        UsageError: if the corpus is too small, the folder holds a run with other settings, or the
            loss becomes infinite or NaN.
    """
    folder = Path(arguments.output_dir)
    workers = Workers()
    setup = set_up(arguments, folder, workers)
    _Run(arguments, folder, setup, workers).loop()
    if workers.first:
        setup.model.save_pretrained(folder)
        setup.tokenizer.save_pretrained(folder)
    workers.end()
    return setup.metrics


def learning_rate(step: int, arguments: Any) -> float:
    """The learning rate of a step: linear warm-up, constant, then linear to 0.

    Warm-up is given in steps, so a longer run begins as a shorter one does.
    """
    rising = (step + 1) / arguments.warmup_steps
    falling = (arguments.max_steps - step) / (arguments.decay_share * arguments.max_steps)
    return arguments.learning_rate * min(1.0, rising, falling)


class _Run:
    """The loop over the steps of one run, and what it logs, measures and saves."""

    def __init__(self, arguments: Any, folder: Path, setup: Setup, workers: Workers) -> None:
        self.arguments, self.folder, self.workers = arguments, folder, workers
        self.setup, self.model, self.metrics = setup, setup.model, setup.metrics
        rate, precision = arguments.mask_rate, arguments.precision
        self.lm = MaskedLM(setup.model, setup.tokenizer, rate, precision)
        self.clock = time.monotonic()

    def loop(self) -> None:
        """Trains from the setup's state to the last step."""
        arguments, done = self.arguments, self.setup.done
        if done:
            self.say(f"resuming after step {done}")
        else:
            self.evaluate(0, _QUICK_WINDOWS)
        batches = Shuffled(self.setup.train, arguments.batch_size, arguments.seed)
        totals = torch.zeros(3, device=self.lm.device)
        self.logged, self.logged_at = done, time.monotonic()
        for step in range(done, arguments.max_steps):
            totals += self.step(step, batches)
            done = step + 1
            ended = done == arguments.max_steps
            if done % arguments.logging_steps == 0 or ended:
                self.log(totals, done)
                totals.zero_()
            if done % arguments.eval_steps == 0 and not ended:
                self.evaluate(done, _QUICK_WINDOWS)
            if done % arguments.save_steps == 0 and not ended:
                self.check(float(totals[0]), done)
                self.save(done)
        if self.metrics.get("final_step") != arguments.max_steps:
            self.metrics["final_step"] = arguments.max_steps
            self.evaluate(done, self.setup.held_out.count, "final")
            self.save(done)

    def step(self, step: int, batches: Shuffled) -> Tensor:
        """One optimiser step; returns [3]: the sum of losses, the number of correct predictions, M.

        M is the number of masked positions; all three are sums over the processes.
        """
        arguments, workers = self.arguments, self.workers
        ids_B, windows_BL, epoch = batches.batch(step)
        rows = workers.share(windows_BL), workers.share(ids_B)
        output, targets = self.lm(*rows, arguments.seed, epoch, arguments.corruption)
        losses_M, correct_M = output.losses.detach(), correct_predictions(output, targets)
        totals = torch.stack(
            [losses_M.sum(), correct_M.sum().float(), losses_M.new_tensor(len(targets))]
        )
        workers.sum(totals)
        (output.losses.sum() / totals[2]).backward()
        workers.sum_gradients(self.model.parameters())
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        optimizer = self.setup.optimizer
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, arguments)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return totals

    def log(self, totals: Tensor, done: int) -> None:
        """Prints loss, accuracy and speed since the last line; `totals` are the sums of `step`."""
        arguments = self.arguments
        loss, correct, rows = totals.tolist()
        self.check(loss, done)
        tokens = (done - self.logged) * arguments.batch_size * arguments.max_length
        self.say(
            f"step {done}/{arguments.max_steps}  loss {loss / rows:.3f}  "
            f"accuracy {correct / rows:.3f}  lr {learning_rate(done - 1, arguments):.2e}  "
            f"{tokens / (time.monotonic() - self.logged_at):,.0f} tokens/s"
        )
        self.logged, self.logged_at = done, time.monotonic()

    def check(self, loss: float, done: int) -> None:
        """Raises UsageError if the run has diverged, before its last good state is replaced."""
        if not math.isfinite(loss):
            raise UsageError(
                f"the loss is {loss} at step {done}: the run has diverged. Start it again with a "
                "lower --learning_rate, and with --overwrite or another --output_dir"
            )

    def say(self, line: str) -> None:
        """Prints a line, from the first process only."""
        if self.workers.first:
            print(line, flush=True)

    def evaluate(self, done: int, limit: int, name: str = "") -> None:
        """Adds the scores on at most `limit` held-out windows to the metrics, also as `name`."""
        if not self.workers.first:
            return
        most_frequent = self.metrics["data"]["most_frequent_token"]
        result = self.lm.evaluate(self.setup.held_out, limit, most_frequent)
        if name:
            self.metrics[name] = result
        self.metrics["evaluations"].append({"step": done, **result})
        self.say(
            f"step {done}  held out: accuracy {result['accuracy']:.4f}  perplexity "
            f"{result['perplexity']:.2f}  (most frequent token {result['unigram_accuracy']:.4f})"
        )

    def save(self, done: int) -> None:
        """Writes the state after `done` steps, and metrics.json."""
        now = time.monotonic()
        self.metrics["seconds"] += now - self.clock
        self.metrics["steps"] = done
        self.clock = now
        if not self.workers.first:
            return
        setup = self.setup
        state.save(self.folder, done, setup.model, setup.tokenizer, setup.optimizer, self.metrics)
        write_json(self.folder / state.METRICS, self.metrics)
