"""One optimizer step of plain fine-tuning and of Mask-tuning, by stock classes and by ours.

    python benchmarks/bench_step.py result.json       # a small BERT at 128 and 512 tokens
    python benchmarks/bench_step.py result.json --models bert,roberta,bart \
        --sizes 4x256,6x384,12x768 --lengths 128,512 --batch_size 16      # hours on a CPU

contenders.py says what is compared. Weights and tokens are random; every text of the batch has the
same length, and every contender takes its steps in Trainer's own loop. The contenders take turns:
a round is three steps of each, and its figure is their median. The ratios are medians over the
rounds, to stock Trainer's step and to our fine-tuning's. Peak memory is that of two steps: the
weights and whatever is allocated besides, the optimizer's state included. The file is written again
after every round, so that a run which is interrupted leaves its results.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from transformers import Trainer

sys.path.insert(0, str(Path(__file__).parent))
from contenders import (
    FINETUNING,
    STOCK,
    Settings,
    check_machine,
    chosen,
    make_model,
    make_trainer,
)
from starting_point import random_rows, starting_point
from step_watch import GPU, PeakMemory, StepTimes, held_bytes
from timing import command_line, environment, half_dtype, write_json

STEPS = 3
"""In a round."""
Rounds = list[dict[str, float]]


def read_flags() -> argparse.Namespace:
    half = {torch.bfloat16: "bf16", torch.float16: "fp16"}
    usual = half[half_dtype()] if GPU else "fp32"
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("out", nargs="?")
    parser.add_argument("--models", default="bert")
    parser.add_argument("--sizes", default="4x256", help="layers x width")
    parser.add_argument("--lengths", default="128,512", help="tokens of a text")
    parser.add_argument("--batch_size", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--precision", choices=["fp32", "bf16", "fp16"], default=usual)
    parser.add_argument("--contenders", default="a,b,c,e,f")
    return parser.parse_args()


def make_trainers(
    model: str, length: int, names: list[str], settings: Settings
) -> dict[str, Trainer]:
    """A trainer of each contender, whose epoch is the same batch, `STEPS` times."""
    start = starting_point(model)
    rows = STEPS * random_rows(start.tokenizer, settings.batch_size * [length])
    return {
        name: make_trainer(name, make_model(name, start), start.tokenizer, rows, settings)
        for name in names
    }


def step_bytes(trainer: Trainer) -> int:
    """The peak of the memory of two steps, with the weights."""
    memory = PeakMemory()
    trainer.add_callback(memory)
    trainer.train()
    trainer.remove_callback(memory)
    return memory.peak + held_bytes(trainer)


def one_round(trainers: dict[str, Trainer]) -> dict[str, float]:
    """The median seconds of a step of each contender."""
    found = {}
    for name, trainer in trainers.items():
        times = StepTimes()
        trainer.add_callback(times)
        trainer.train()
        trainer.remove_callback(times)
        found[name] = statistics.median(times.seconds)
    return found


def summary(rounds: Rounds, memory: dict[str, int], batch: int) -> dict[str, dict[str, float]]:
    """The row of each contender; ratios only to those that were measured."""
    table: dict[str, dict[str, float]] = {}
    for name in rounds[0]:
        seconds = statistics.median(times[name] for times in rounds)
        table[name] = {"ms": 1e3 * seconds, "examples_per_s": batch / seconds}
        for key, other in (("of_stock", STOCK), ("of_finetuning", FINETUNING)):
            if other in rounds[0]:
                table[name][key] = statistics.median(t[name] / t[other] for t in rounds)
        table[name]["peak_bytes"] = memory[name]
        if STOCK in memory:
            table[name]["peak_of_stock"] = memory[name] / memory[STOCK]
    return table


def print_table(case: dict[str, Any]) -> None:
    print(f"{case['model']}, {case['B']} texts of {case['L']} tokens, {case['precision']}")
    for name, row in case["contenders"].items():
        time = f"{row['ms']:9.1f} ms {row['examples_per_s']:8.1f}/s"
        ratios = [f"{row[key]:5.2f} {key}" for key in ("of_stock", "of_finetuning") if key in row]
        memory = f"{row['peak_bytes'] / 2**20:8.0f} MiB"
        if "peak_of_stock" in row:
            memory += f" {row['peak_of_stock']:5.2f} of_stock"
        print(f"  {name:36s}", time, *ratios, memory, flush=True)


def main() -> None:
    flags = read_flags()
    check_machine(flags.precision)
    names = chosen(flags.contenders)
    result: dict[str, Any] = {"command": command_line(__file__, vars(flags))}
    result |= {"environment": environment(), "steps_per_round": STEPS, "cases": []}
    sizes = [f"{m}-{size}" for m in flags.models.split(",") for size in flags.sizes.split(",")]
    for model, length in ((m, int(n)) for m in sizes for n in flags.lengths.split(",")):
        case: dict[str, Any] = {"model": model, "B": flags.batch_size, "L": length}
        case |= {"precision": flags.precision}
        result["cases"].append(case)
        with tempfile.TemporaryDirectory() as folder:
            settings = Settings(Path(folder), flags.batch_size, flags.precision, sequential=True)
            trainers = make_trainers(model, length, names, settings)
            memory = {name: step_bytes(trainer) for name, trainer in trainers.items()}
            rounds: Rounds = []
            for _ in range(flags.rounds):
                rounds.append(one_round(trainers))
                case["rounds"] = len(rounds)
                case["contenders"] = summary(rounds, memory, flags.batch_size)
                write_json(flags.out, result)
        print_table(case)


if __name__ == "__main__":
    main()
