"""One optimizer step of every method, relative to plain fine-tuning: time and peak memory.

    python benchmarks/bench_methods.py result.json             # the embedded checkpoint
    python benchmarks/bench_methods.py benchmarks/results/methods_cpu.json --model MODEL \
        --task qqp --data_dir DATA --batch_size 16

Every method trains through the command's own code on the same batches of real or generated pairs,
in the order of the training set. Earlier trainings of a method (a teacher, a parser) take two steps
each and are not measured, and neither is the preparation of the training set. In every
round each method takes three steps right after three of plain fine-tuning; its time is the median
of its steps, and the ratio is that to the fine-tuning just before it. Both are medians over the
rounds. Peak memory is that of two steps: the weights and whatever is allocated besides, the
optimizer's state included. `python -m masktuning.methods page --costs RESULT` shows the result.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

from transformers import PrinterCallback, ProgressCallback

sys.path.insert(0, str(Path(__file__).parent))
from step_watch import PeakMemory, StepTimes, held_bytes
from timing import command_line, environment, write_json

from masktuning.demo import EMBEDDED
from masktuning.methods import METHODS
from masktuning.training.build import build_trainer
from masktuning.training.job import read_job
from masktuning.training.run import run
from masktuning.training.stages import pending_stages, started
from masktuning.training.trainer import MaskTuningTrainer

PLAIN = "finetuning"
STEPS = 3
"""In a round."""
_BIASED = ("bias_product", "reweight", "learned_mixin", "confidence_regularization")
NEEDED = dict.fromkeys(_BIASED, "--bias_model overlap")
"""Flags that a method cannot do without."""
TREEBANK = ("dependency_parsing", "intermediate_parsing")
"""Not measured, since they need a treebank; a step of the second one is one of fine-tuning."""
MEASURED = [name for name in METHODS if name not in TREEBANK]


def read_flags() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("out", nargs="?")
    parser.add_argument("--methods", nargs="+", default=MEASURED, choices=MEASURED)
    parser.add_argument("--model", help="checkpoint folder or hub id; the embedded one by default")
    parser.add_argument("--task", default="demo-pairs")
    parser.add_argument("--data_dir")
    parser.add_argument("--batch_size", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--precision", choices=["fp32", "bf16", "fp16", "auto"], default="fp32")
    return parser.parse_args()


def make_trainer(name: str, flags: argparse.Namespace, folder: Path) -> MaskTuningTrainer:
    """A trainer of a method, after the earlier trainings that it needs."""
    words = [
        *("--method", name, "--task", flags.task, "--output_dir", str(folder / name)),
        *("--max_train_samples", str(STEPS * flags.batch_size), "--max_eval_samples", "16"),
        *("--per_device_train_batch_size", str(flags.batch_size), "--max_steps", "2"),
        *("--precision", flags.precision, "--train_sampling_strategy", "sequential"),
        *("--logging_steps", "1000", "--save_strategy", "no", "--eval_strategy", "no"),
        *("--report_to", "none", "--disable_tqdm", "true"),
        *(["--model_name_or_path", flags.model] if flags.model else []),
        *(["--data_dir", flags.data_dir] if flags.data_dir else []),
        *NEEDED.get(name, "").split(),
    ]
    job = read_job(words, EMBEDDED, warn=False)
    for stage in pending_stages(job, fresh=True):
        run(stage, summary=False)
    job.training.max_steps = STEPS
    trainer, _ = build_trainer(started(job))
    for callback in (PrinterCallback, ProgressCallback):
        trainer.remove_callback(callback)
    return trainer


def step_bytes(trainer: MaskTuningTrainer) -> int:
    """The peak of the memory of two steps, with the weights."""
    memory = PeakMemory()
    trainer.add_callback(memory)
    trainer.train()
    trainer.remove_callback(memory)
    return memory.peak + held_bytes(trainer)


def step_seconds(trainer: MaskTuningTrainer) -> float:
    """The median seconds of the steps of one round."""
    times = StepTimes()
    trainer.add_callback(times)
    trainer.train()
    trainer.remove_callback(times)
    return statistics.median(times.seconds)


def one_round(trainers: dict[str, MaskTuningTrainer]) -> dict[str, tuple[float, float]]:
    """The seconds of a step of each method, and of plain fine-tuning just before it."""
    found = {}
    for name, trainer in trainers.items():
        plain = step_seconds(trainers[PLAIN])
        found[name] = (plain if name == PLAIN else step_seconds(trainer), plain)
    return found


def summary(
    rounds: list[dict[str, tuple[float, float]]], memory: dict[str, int]
) -> dict[str, dict[str, float]]:
    """Milliseconds and bytes of each method, and both relative to plain fine-tuning."""
    return {
        name: {
            "ms": 1e3 * statistics.median(times[name][0] for times in rounds),
            "step_time": statistics.median(times[name][0] / times[name][1] for times in rounds),
            "peak_bytes": memory[name],
            "peak_memory": memory[name] / memory[PLAIN],
        }
        for name in memory
    }


def main() -> None:
    flags = read_flags()
    names = [PLAIN, *(name for name in flags.methods if name != PLAIN)]
    listed = None if flags.methods == MEASURED else " ".join(flags.methods)
    command = command_line(__file__, vars(flags) | {"methods": listed})
    result: dict[str, Any] = {"command": command, **environment()}
    result["model"] = "the embedded checkpoint" if flags.model is None else Path(flags.model).name
    result |= {"task": flags.task, "batch": flags.batch_size, "precision": flags.precision}
    with tempfile.TemporaryDirectory() as folder:
        trainers = {name: make_trainer(name, flags, Path(folder)) for name in names}
        memory = {name: step_bytes(trainer) for name, trainer in trainers.items()}
        rounds = []
        for _ in range(flags.rounds):
            rounds.append(one_round(trainers))
            result |= {"rounds": len(rounds), "methods": summary(rounds, memory)}
            write_json(flags.out, result)
    for name, row in result["methods"].items():
        print(
            f"{name:28s}{row['ms']:9.1f} ms {row['step_time']:6.2f} x"
            f"{row['peak_bytes'] / 2**20:9.0f} MiB {row['peak_memory']:6.2f} x"
        )


if __name__ == "__main__":
    main()
