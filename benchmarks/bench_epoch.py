"""Whole epochs of plain fine-tuning and of Mask-tuning, by stock classes and by ours.

    python benchmarks/bench_epoch.py result.json --task sst2 --model bert-4x256 --rows 10000
    python benchmarks/bench_epoch.py result.json --task qqp --model CHECKPOINT --precision bf16

contenders.py says what is compared. The texts are random tokens, as long as those of the task
(lengths.json); the model is a checkpoint folder, or one of random weights whose shape its name
gives. The rows are divided among the rounds. In a round every contender makes a Trainer around a
fresh copy of the model and trains on that share for one epoch, and both are timed. So the sum over
the rounds is one epoch, and every round gives a ratio to stock Trainer's time. Three batches before
the first round are not timed. All write as many lines of the log as our default asks for in the
whole epoch. The file is written again after every round.

Batches of similar length are chosen within a share. At the default five shares of 2,000 rows of
SST-2 in batches of 16 they hold 1.085 tokens for each real one, and 1.047 in an epoch of all rows,
so that many rounds underrate our trainer a little. `real_token_share` says what it was.

The contenders a, b and d take several times as long as the others. With `--slow_rounds 1` they and
the slower back ends of f take part in the first round only; their seconds are then those of its
rows, and their ratios those of that round.

Under torchrun every process trains on its part, and --batch_size is that of all together
(bench_processes.py compares the number of processes).
"""

from __future__ import annotations

import argparse
import math
import os
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
from contenders import (
    FINETUNING,
    MASK_TUNING,
    PADDED,
    STOCK,
    Settings,
    check_machine,
    chosen,
    make_model,
    make_trainer,
)
from energy import Counter, counters, joules_since, readings
from lengths import LONGEST, SETS, row_lengths
from starting_point import StartingPoint, as_dataset, padded_rows, random_rows, starting_point
from step_watch import now
from timing import command_line, environment, write_json

LOGS = 50
"""Lines of the log in an epoch: the default of our `logging_steps` is a fiftieth of the steps."""
WARM_UP = 3
"""Batches that every contender trains on before the first round."""
Measured = dict[str, Any]


def read_flags() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("out", nargs="?")
    parser.add_argument("--task", choices=list(SETS), default="sst2")
    parser.add_argument("--model", default="bert-4x256", help="a folder, or a shape")
    parser.add_argument("--rows", type=int, default=10000)
    parser.add_argument("--batch_size", type=int, default=16)
    parser.add_argument("--precision", choices=["fp32", "bf16", "fp16"], default="fp32")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--slow_rounds", type=int, help="rounds of the slow ones; all by default")
    parser.add_argument("--contenders", default="a,b,c,d,e,f")
    return parser.parse_args()


def slices(rows: list[dict[str, Any]], tokenizer: Any, rounds: int) -> list[dict[str, Any]]:
    """For each round its part of the rows, as they are and padded to 128 tokens."""
    size = math.ceil(len(rows) / rounds)
    parts = [rows[first : first + size] for first in range(0, len(rows), size)]
    return [
        {"": as_dataset(part), PADDED: as_dataset(padded_rows(tokenizer, part, LONGEST))}
        for part in parts
    ]


def measure(
    name: str, start: StartingPoint, rows: Any, settings: Settings, energy: list[Counter]
) -> Measured:
    """Seconds, tokens and energy of one contender's epoch of `rows`."""
    model = make_model(name, start)
    joules, began = readings(energy), now()
    trainer = make_trainer(name, model, start.tokenizer, rows, settings)
    trainer.train()
    found: Measured = {"seconds": now() - began, "joules": joules_since(joules, energy)}
    # Batches of another epoch, counted apart from the measurement: their padding is the same.
    real = padded = 0
    for batch in trainer.get_train_dataloader():
        padded += batch["input_ids"].numel()
        mask = batch.get("attention_mask")
        real += batch["input_ids"].numel() if mask is None else int(mask.sum())
    return {**found, "rows": len(rows), "real_tokens": real, "padded_tokens": padded}


def summary(rounds: list[dict[str, Measured]]) -> dict[str, Measured]:
    """The row of each contender: sums over the rounds, and the ratios of the single rounds."""
    table = {}
    for name in rounds[0]:
        parts = [measured[name] for measured in rounds if name in measured]
        total = {key: sum(p[key] for p in parts) for key in parts[0] if key != "joules"}
        row: Measured = {
            "rows": total["rows"],
            "seconds": total["seconds"],
            "examples_per_s": total["rows"] / total["seconds"],
            "real_token_share": total["real_tokens"] / total["padded_tokens"],
        }
        if STOCK in rounds[0]:
            both = [(one[name], one[STOCK]) for one in rounds if name in one]
            ratios = [ours["seconds"] / stock["seconds"] for ours, stock in both]
            row["of_stock"] = statistics.median(ratios)
            row["of_stock_range"] = [min(ratios), max(ratios)]
        for counter in parts[0]["joules"]:
            row[f"joules, {counter}"] = sum(p["joules"][counter] for p in parts)
        table[name] = row
    return table


def print_table(table: dict[str, Measured]) -> None:
    for name, row in table.items():
        text = f"{row['rows']:6d} rows {row['seconds']:8.1f} s {row['examples_per_s']:8.1f}/s"
        text += f" {100 * row['real_token_share']:5.1f} % real tokens"
        if "of_stock" in row:
            low, high = row["of_stock_range"]
            text += f" {row['of_stock']:6.3f} of_stock ({low:.3f} to {high:.3f})"
        joules = {key: value for key, value in row.items() if key.startswith("joules")}
        print(f"  {name:36s}", text, *(f"{v:.0f} {k}" for k, v in joules.items()), flush=True)


def main() -> None:
    flags = read_flags()
    check_machine(flags.precision)
    names, energy = chosen(flags.contenders), counters()
    processes, rank = (int(os.environ.get(n, d)) for n, d in (("WORLD_SIZE", 1), ("RANK", 0)))
    if flags.batch_size % processes:
        raise SystemExit(f"--batch_size {flags.batch_size} cannot be divided by {processes}")
    labels = 3 if flags.task == "mnli" else 2
    start = starting_point(flags.model, labels)
    rows = random_rows(start.tokenizer, row_lengths(flags.task, flags.rows), labels)
    result: dict[str, Any] = {"command": command_line(__file__, vars(flags))}
    result |= {"environment": environment(), "processes": processes}
    logging_steps = math.ceil(math.ceil(flags.rows / flags.batch_size) / LOGS)
    rounds: list[dict[str, Measured]] = []
    with tempfile.TemporaryDirectory() as folder:
        per_process = flags.batch_size // processes
        settings = Settings(Path(folder), per_process, flags.precision, logging_steps)
        warm_up = slices(rows[: WARM_UP * flags.batch_size], start.tokenizer, 1)[0]
        for name in names:
            measure(name, start, warm_up.get(name, warm_up[""]), settings, energy)
        fast = [name for name in names if name in (STOCK, FINETUNING)]
        fast += [name for name in names if name.startswith(MASK_TUNING)][:1]
        for i, part in enumerate(slices(rows, start.tokenizer, flags.rounds)):
            slow = flags.slow_rounds is None or i < flags.slow_rounds
            measured = {
                name: measure(name, start, part.get(name, part[""]), settings, energy)
                for name in (names if slow else fast)
            }
            rounds.append(measured)
            if rank == 0:
                result |= {"rounds": len(rounds), "contenders": summary(rounds)}
                result["dataset"] = type(part[""]).__name__
                result["seconds"] = [{n: m["seconds"] for n, m in r.items()} for r in rounds]
                write_json(flags.out, result)
                print(f"round {len(rounds)} of {flags.task}, {flags.precision}")
                print_table(result["contenders"])


if __name__ == "__main__":
    main()
