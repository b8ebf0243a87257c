"""The time from the start of `python -m masktuning.train` to its training, and its parts.

    python benchmarks/startup.py result.json [--against CHECKOUT] [--rounds N] [-- FLAGS OF TRAIN]

In each round a run of this checkout is started and, with --against, one of another checkout, which
needs its compiled module; each is stopped when its training begins. The parts are CPU seconds
within one process of this checkout, up to the end of its first step. Importing the stock Trainer
alone is measured as well, since every run has to do that. Without flags, the run is the demo's
Mask-tuning.
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
USUAL = ["--max_steps", "1", "--disable_tqdm", "true", "--use_cpu", "true"]
USUAL += ["--save_strategy", "no", "--eval_strategy", "no"]
STOCK = "import time; from transformers import Trainer; print(time.process_time())"


def python(checkout: Path, *words: str, **options: Any) -> subprocess.Popen[str]:
    """Python with the package of a checkout, on one thread, without GPU and network."""
    own = {"PYTHONPATH": str(checkout), "PYTHONUNBUFFERED": "1", "OMP_NUM_THREADS": "1"}
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "HF_HUB_OFFLINE": "1", **own}
    return subprocess.Popen([sys.executable, *words], env=environment, text=True, **options)


def until_training(checkout: Path, flags: list[str]) -> dict[str, float]:
    """CPU and wall seconds from the start of a process until its training begins.

    A run writes its config.yaml then, after all checks, and takes its first batch next.
    """
    import psutil  # accelerate requires it

    with tempfile.TemporaryDirectory() as folder, tempfile.TemporaryFile("w+") as output:
        words = ["-m", "masktuning.train", *flags, *USUAL, "--output_dir", f"{folder}/run"]
        start = time.perf_counter()
        process = python(checkout, *words, cwd=folder, stdout=output, stderr=output)
        while process.poll() is None:
            if Path(folder, "run", "config.yaml").exists():
                wall = time.perf_counter() - start
                used = psutil.Process(process.pid).cpu_times()
                process.kill()
                process.wait()
                return {"cpu_s": used.user + used.system, "wall_s": wall}
            time.sleep(0.005)
        output.seek(0)
        sys.exit(f"{checkout}: it did not train:\n{output.read()[-3000:]}")


def stock_import() -> float:
    """CPU seconds of a process that imports the stock Trainer and nothing else."""
    with python(HERE, "-c", STOCK, stdout=subprocess.PIPE) as process:
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
    until_training(checkouts[0], flags)  # reads all files into memory, and tokenises
    times: list[list[dict[str, float]]] = []
    stock = []
    for _ in range(rounds):
        times.append([until_training(checkout, flags) for checkout in checkouts])
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
    end = sys.argv.index("--") if "--" in sys.argv else len(sys.argv)
    arguments = parser.parse_args(sys.argv[1:end])
    flags = sys.argv[end + 1 :] or DEMO
    if arguments.out == "parts":  # the second process of main
        with tempfile.TemporaryDirectory() as folder:
            print(json.dumps(parts([*flags, *USUAL, "--output_dir", f"{folder}/run"])))
        return
    checkouts = [HERE, *([arguments.against.resolve()] if arguments.against else [])]
    found = measure(checkouts, arguments.rounds, flags)
    if arguments.against:
        git = ["git", "-C", str(arguments.against), "rev-parse", "--short", "HEAD"]
        found["the other"]["commit"] = subprocess.check_output(git, text=True).strip()
    with python(HERE, __file__, "parts", "--", *flags, stdout=subprocess.PIPE) as process:
        found["parts, cpu_s"] = json.loads(process.communicate()[0].splitlines()[-1])
    sys.path.insert(0, str(Path(__file__).parent))
    from timing import environment, write_json  # not before: it imports torch

    write_json(arguments.out, {"environment": environment(), "flags": flags, **found})
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
