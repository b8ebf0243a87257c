"""Starts the process of one cell, waits for it, and reads what it found or why it failed."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
from dataclasses import dataclass, replace
from pathlib import Path
from typing import BinaryIO

from masktuning.config import files
from masktuning.experiments.cell import read_outcome
from masktuning.experiments.outcome import Outcome
from masktuning.experiments.plan import Cell, Variant
from masktuning.experiments.study import CellFailed, Stopped

_LOG = "run.log"
_POLL_SECONDS = 0.2
_NOT_KEPT = ("--save_strategy", "no", "--eval_strategy", "no", "--report_to", "none")
# Flags that say when a run saves and evaluates; without them it does so at its end only.
_SAVING = (
    *("--save_strategy", "--save_steps", "--eval_strategy", "--eval_steps"),
    *("--load_best_model_at_end", "--early_stopping_patience", "--eval_ood"),
)


@dataclass(frozen=True)
class CellRunner:
    """How the cells of a comparison are run on this machine."""

    flags: list[str]
    """The words of `masktuning.train` that all cells have."""
    folder: Path
    """The folder of the run folders."""
    identity: str
    """The short name of the study's identity; an earlier outcome counts only if it has the same."""
    embedded: Path
    """The checkpoint of generated tasks."""
    environment: dict[str, str]
    """Environment variables of the processes over those of this one."""
    stop: threading.Event
    """Set when the user stops the comparison."""

    def on_device(self, number: int) -> CellRunner:
        """The runner of one of several jobs: on a machine with several GPUs, on one of them."""
        gpus = _gpus()
        if len(gpus) < 2:
            return self
        own = {"CUDA_VISIBLE_DEVICES": gpus[number % len(gpus)]}
        return replace(self, environment={**self.environment, **own})

    def __call__(self, cell: Cell) -> Outcome:
        """The outcome of a cell, from its folder if an earlier process wrote it there.

        Raises:
            CellFailed: if the run ended without an outcome.
            Stopped: if the user stopped the comparison.
        """
        folder = self.folder / folder_name(cell)
        if (found := read_outcome(folder, self.identity)) is not None:
            return found
        files.make(folder.parent)
        log = folder.with_suffix(".log")
        with log.open("wb") as output:
            code = self._run(self._words(cell, folder), output)
        found = read_outcome(folder, self.identity) if code == 0 else None
        if found is None:
            raise CellFailed(_reason(code, log))
        shutil.move(log, folder / _LOG)
        return found

    def _words(self, cell: Cell, folder: Path) -> list[str]:
        """The words of the command line of a cell."""
        variant = Variant.parse(cell.variant)
        words = [*self.flags, "--method", variant.method, "--seed", str(cell.seed)]
        for name, value in (*variant.options, *cell.point):
            words += [f"--{name}", *value.split()]
        if not any(word.split("=")[0] in _SAVING for word in self.flags):
            words += _NOT_KEPT[:4]
        if not any(word.startswith("--report_to") for word in self.flags):
            words += _NOT_KEPT[4:]
        words += ["--output_dir", str(folder), "--disable_tqdm", "true"]
        newest = any(folder.glob("checkpoint-*/trainer_state.json"))
        return [*words, *(["--resume_from_checkpoint"] if newest else ["--overwrite"])]

    def _run(self, words: list[str], output: BinaryIO) -> int:
        """The exit status of the process, which is ended if the user stops the comparison."""
        job = {"flags": words, "identity": self.identity, "embedded": str(self.embedded)}
        with subprocess.Popen(
            [sys.executable, "-m", "masktuning.experiments.cell"],
            stdin=subprocess.PIPE,
            stdout=output,
            stderr=subprocess.STDOUT,
            text=True,
            env={**os.environ, **self.environment},
            start_new_session=True,  # Ctrl-C in the terminal is for the comparison to handle
        ) as process:
            assert process.stdin is not None
            try:
                process.stdin.write(json.dumps(job) + "\n")
                process.stdin.flush()
                while process.poll() is None:
                    if self.stop.wait(_POLL_SECONDS):
                        raise Stopped
            except BrokenPipeError:
                process.wait()  # it ended before it read the job; its log says why
            finally:
                process.kill()  # has an effect only if it still runs
        return process.returncode


def _gpus() -> list[str]:
    """The GPUs that this process may use, as CUDA_VISIBLE_DEVICES names them."""
    import torch

    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    if named is not None:
        return [one for one in named.split(",") if one]
    return [str(number) for number in range(torch.cuda.device_count())]


def folder_name(cell: Cell) -> str:
    """The name of a cell's run folder."""
    return re.sub(r"[^\w.,=:+-]+", "_", cell.key)


def remove_weights(folder: Path) -> None:
    """Removes what can be loaded from a run folder, and keeps its results and its log."""
    for path in [*folder.glob("checkpoint-*"), folder / "stages", folder / "mlm_head"]:
        shutil.rmtree(path, ignore_errors=True)
    for path in folder.rglob("*.safetensors"):
        path.unlink()


def _reason(code: int, log: Path) -> str:
    """Why a run failed, in one line, with the place of its log."""
    if code < 0:
        name = signal.Signals(-code).name
        hint = " (out of memory?)" if code == -signal.SIGKILL else ""
        return f"ended by the signal {name}{hint}; {log}"
    lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    said = next((one for one in reversed(lines) if one.strip()), f"exit status {code}")
    return f"{said.removeprefix('error: ')[:300]}; {log}"
