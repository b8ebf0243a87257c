"""The time from the start of `python -m masktuning.train` to its first step, and its parts.

    python benchmarks/startup.py result.json [--against CHECKOUT] [--rounds N] [-- FLAGS OF TRAIN]

In each round a run of this checkout is started and, with --against, one of another checkout, which
needs its compiled module; each is stopped when its first step is in the log. The parts are CPU
seconds within one process of this checkout. Importing the stock Trainer alone is measured as well,
since every run has to do that. Without flags, the run is the demo's Mask-tuning.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent.parent
DEMO = ["--method", "mask_tuning"]
USUAL = ["--max_steps", "1", "--logging_steps", "1", "--disable_tqdm", "true", "--use_cpu", "true"]
USUAL += ["--save_strategy", "no", "--eval_strategy", "no"]
STOCK = "import time; from transformers import Trainer; print(time.process_time())"


def python(checkout: Path, *words: str, **options: Any) -> subprocess.Popen[str]:
    """Python with the package of a checkout, on one thread, without GPU and network."""
    own = {"PYTHONPATH": str(checkout), "PYTHONUNBUFFERED": "1", "OMP_NUM_THREADS": "1"}
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "HF_HUB_OFFLINE": "1", **own}
    return subprocess.Popen(
        [sys.executable, *words], env=environment, stdout=subprocess.PIPE, text=True, **options
    )


def first_step(checkout: Path, flags: list[str]) -> dict[str, float]:
    """CPU and wall seconds from the start of a process until its first step is in its log."""
    import psutil  # accelerate requires it

    with tempfile.TemporaryDirectory() as folder, tempfile.TemporaryFile("w+") as errors:
        words = ["-m", "masktuning.train", *flags, *USUAL, "--output_dir", f"{folder}/run"]
        start = time.perf_counter()
        with python(checkout, *words, cwd=folder, stderr=errors) as process:
            for line in process.stdout or ():
                if "'loss'" in line:
                    wall = time.perf_counter() - start
                    used = psutil.Process(process.pid).cpu_times()
                    process.kill()
                    return {"cpu_s": used.user + used.system, "wall_s": wall}
        errors.seek(0)
        sys.exit(f"{checkout}: no step was logged:\n{errors.read()[-3000:]}")


def stock_import() -> float:
    """CPU seconds of a process that imports the stock Trainer and nothing else."""
    with python(HERE, "-c", STOCK) as process:
        return float(process.communicate()[0])


def parts(flags: list[str]) -> dict[str, float]:
    """CPU seconds of each part of this process, which must have imported nothing of it before."""
    from masktuning.config.imports import heavy_imports

    found: dict[str, float] = {}

    def mark(name: str) -> None:
        found[name] = found.get(name, 0.0) + time.process_time() - sum(found.values())

    def marked(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any) -> Any:
            mark("the rest")
            result = function(*arguments)
            mark(name)
            return result

        return call

    mark("the rest")
    with heavy_imports():
        import torch  # noqa: F401

        mark("import torch")
        import accelerate  # noqa: F401

        mark("import accelerate")
        import datasets  # noqa: F401

        mark("import datasets")
        from transformers import BertForMaskedLM, Trainer  # noqa: F401

        mark("import transformers")
        from masktuning.demo import EMBEDDED, compare  # noqa: F401
        from masktuning.training import build
        from masktuning.training.job import read_job

        mark("import masktuning")
        job = read_job(flags, EMBEDDED)
        mark("flags and task")
    build.load_texts = marked("texts", build.load_texts)
    build.load_model = marked("model and tokenizer", build.load_model)
    build.encode_all = marked("tokenised rows", build.encode_all)
    trainer, _ = build.build_trainer(job)
    trainer.training_step = marked("the first step itself", trainer.training_step)
    trainer.train()
    return found


def measure(checkouts: list[Path], rounds: int, flags: list[str]) -> dict[str, Any]:
    """Medians for each checkout and for stock imports, and those of the ratios within a round."""
    first_step(checkouts[0], flags)  # reads all files into memory, and tokenises
    times: list[list[dict[str, float]]] = []
    stock = []
    for _ in range(rounds):
        times.append([first_step(checkout, flags) for checkout in checkouts])
        stock.append(stock_import())
    found: dict[str, Any] = {"import of the stock Trainer": {"cpu_s": statistics.median(stock)}}
    for i, name in enumerate(["this checkout", "the other"][: len(checkouts)]):
        found[name] = {key: statistics.median(row[i][key] for row in times) for key in times[0][0]}
    if len(checkouts) > 1:
        found["ratio"] = {
            key: statistics.median(row[0][key] / row[1][key] for row in times)
            for key in times[0][0]
        }
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out")
    parser.add_argument("--against", type=Path)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("flags", nargs="*")
    arguments = parser.parse_args()
    flags = arguments.flags or DEMO
    if arguments.out == "parts":  # the second process of main
        with tempfile.TemporaryDirectory() as folder:
            print(json.dumps(parts([*flags, *USUAL, "--output_dir", f"{folder}/run"])))
        return
    checkouts = [HERE, *([arguments.against.resolve()] if arguments.against else [])]
    found = measure(checkouts, arguments.rounds, flags)
    with python(HERE, __file__, "parts", "--", *flags) as process:
        found["parts, cpu_s"] = json.loads(process.communicate()[0].splitlines()[-1])
    sys.path.insert(0, str(Path(__file__).parent))
    from timing import environment, write_json  # not before: it imports torch

    write_json(arguments.out, {"environment": environment(), "flags": flags, **found})
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
