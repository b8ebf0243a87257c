"""Digests of what training and evaluation compute, to show that a change altered no bit.

    python benchmarks/fingerprint.py before.json                         # before a change
    python benchmarks/fingerprint.py after.json --baseline before.json   # after it

Everything runs on one thread of the CPU. The digests of weights belong to one machine, since
another CPU adds numbers in another order: compare two states of the code on the same machine. With
--data_dir, the folder of the tasks' files, sst2, lingnli and hans are measured too. It takes about
seven minutes.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

sys.path.insert(0, str(Path(__file__).parent))
from timing import environment, write_json

from masktuning.demo import EMBEDDED
from masktuning.training.build import build_trainer
from masktuning.training.job import read_job

# One thread, no GPU and no network, for the commands that run in processes of their own.
ENVIRONMENT = {
    **os.environ,
    "OMP_NUM_THREADS": "1",
    "CUDA_VISIBLE_DEVICES": "",
    "HF_HUB_OFFLINE": "1",
    "HF_DATASETS_OFFLINE": "1",
}
# As all batches were when the digests in results/ were made.
RANDOM_BATCHES = ("--train_sampling_strategy", "random")


def command(module: str, *words: str, processes: int = 1) -> None:
    """Runs one of the package's commands; its output is shown only where it fails."""
    launcher = [sys.executable, "-m"]
    if processes > 1:
        distributed = ["torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"]
        launcher += [*distributed, "-m"]
    program = [*launcher, f"masktuning.{module}", *words]
    done = subprocess.run(program, env=ENVIRONMENT, capture_output=True)
    if done.returncode != 0:
        sys.exit(f"{module} {' '.join(words)}:\n{done.stderr.decode()[-3000:]}")


def train(folder: Path, *words: str, processes: int = 1) -> None:
    flags = ("--output_dir", str(folder), "--use_cpu", "true", *RANDOM_BATCHES)
    command("train", *flags, *words, processes=processes)


def weights(folder: Path) -> str:
    """SHA-256 of all weights of a run folder, the masked-LM head's too, by name."""
    digest = hashlib.sha256()
    for path in sorted(folder.glob("*.safetensors")) + sorted(folder.glob("mlm_head/*")):
        for name, tensor in sorted(load_file(path).items()):
            digest.update(f"{path.name} {name} {tuple(tensor.shape)}".encode())
            digest.update(tensor.contiguous().numpy().tobytes())
    return digest.hexdigest()


def metrics(model: Path, folder: Path, *words: str) -> dict[str, Any]:
    command("evaluate", "--model_name_or_path", str(model), "--output_dir", str(folder), *words)
    return json.loads((folder / "results.json").read_text())


def masks_and_tokens(folder: Path, backend: str, **options: Any) -> str:
    """SHA-256 of what the encoder read in 200 steps: the masked texts and the perturbed ones."""
    settings = {"max_steps": 200, "backend": backend, "use_cpu": True, **options}
    words = [word for k, v in settings.items() for word in (f"--{k}", str(v).lower())]
    words = ["--task", "demo", "--method", "mask_tuning", "--output_dir", str(folder), *words]
    words += RANDOM_BATCHES
    trainer, _ = build_trainer(read_job(words, EMBEDDED))
    digest = hashlib.sha256()

    def record(module: Any, args: Any, kwargs: dict[str, Any]) -> None:
        ids = kwargs["input_ids"] if "input_ids" in kwargs else args[0]
        digest.update(str(tuple(ids.shape)).encode() + ids.contiguous().numpy().tobytes())

    trainer.args.set_save("no")
    trainer.args.set_evaluate("no")
    trainer.model.model.encoder.register_forward_pre_hook(record, with_kwargs=True)
    trainer.train()
    return digest.hexdigest()


def fingerprint(work: Path, data_dir: str | None) -> dict[str, Any]:
    torch.set_num_threads(1)
    found: dict[str, Any] = {}
    for backend in ("cpp", "reference"):
        found[f"masks and tokens, {backend}"] = masks_and_tokens(work / "m", backend)
        draw = {"top_k": 5, "corruption": "80-10-10", "mask_rate": 0.15}
        found[f"masks and tokens, top_k 5, 80-10-10, {backend}"] = masks_and_tokens(
            work / "m", backend, **draw
        )
        for method in ("mask_tuning", "finetuning"):
            for task in ("demo", "demo-pairs"):
                out = work / f"{task}-{method}-{backend}"
                words = ("--task", task, "--method", method, "--backend", backend)
                train(out, *words, "--max_steps", "60")
                found[f"weights after 60 steps, {task}, {method}, {backend}"] = weights(out)
    for task in ("demo", "demo-pairs"):
        found[f"metrics, {task}"] = metrics(
            work / f"{task}-mask_tuning-cpp", work / "e", "--task", task
        )
    words = ("--task", "demo", "--method", "mask_tuning")
    for method in ("mask_tuning", "finetuning"):
        out = work / f"two-{method}"
        train(out, "--task", "demo", "--method", method, "--max_steps", "20", processes=2)
        found[f"weights of two processes, {method}"] = weights(out)
    train(work / "whole", *words, "--max_steps", "40", "--save_steps", "20")
    found["weights after 40 steps"] = weights(work / "whole")
    resume = str(work / "whole" / "checkpoint-20")
    train(work / "rest", *words, "--max_steps", "40", "--resume_from_checkpoint", resume)
    found["weights after 20 steps, resumed"] = weights(work / "rest")
    accumulated = ("--gradient_accumulation_steps", "2", "--include_original", "true")
    train(work / "accumulated", *words, "--max_steps", "20", *accumulated)
    found["weights, accumulated, originals included"] = weights(work / "accumulated")
    if data_dir:
        sample = ("--data_dir", data_dir, "--max_eval_samples", "60")
        model = work / "demo-mask_tuning-cpp"
        found["metrics, sst2"] = metrics(model, work / "e", "--task", "sst2", *sample)
        words = ("--task", "lingnli", "--method", "finetuning", "--max_train_samples", "256")
        model = work / "nli"
        train(model, *words, *sample, "--model_name_or_path", str(EMBEDDED), "--max_steps", "8")
        found["weights, lingnli"] = weights(model)
        found["metrics, lingnli and hans"] = metrics(
            model, work / "e", "--task", "lingnli", *sample
        )
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out")
    parser.add_argument("--baseline")
    parser.add_argument("--data_dir")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as work:
        found = fingerprint(Path(work), arguments.data_dir)
    write_json(arguments.out, {"environment": environment(), **found})
    if arguments.baseline:
        before = json.loads(Path(arguments.baseline).read_text())
        different = [name for name in found if before.get(name) != found[name]]
        print(f"{len(found) - len(different)} of {len(found)} are the same")
        sys.exit("\n".join(["different:", *different]) if different else 0)


if __name__ == "__main__":
    main()
