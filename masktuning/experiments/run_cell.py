"""Starts the process of one cell, waits for it, and reads what it found or why it failed."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import BinaryIO

from masktuning.config import files
from masktuning.config.errors import one_line
from masktuning.experiments.cell import read_outcome
from masktuning.experiments.outcome import Outcome
from masktuning.experiments.plan import SEARCH, Cell
from masktuning.experiments.study import CellFailed, Stopped
from masktuning.training.run_folder import has_optimizer, last_checkpoint

_LOG = "run.log"
_POLL_SECONDS = 0.2
_DIGITS = 6  # of an identity, in the name of a folder
_LONGEST = 120  # characters of a folder's name


@dataclass(frozen=True)
class CellRunner:
    """How the cells of a comparison are run on this machine."""

    words: Callable[[Cell], list[str]]
    """The words of `masktuning.train` for a cell, without its folder."""
    folder: Path
    """The folder of the run folders."""
    identities: Mapping[str, str]
    """By variant, the short name of what its runs depend on, which is a part of their folders'
    names: what another study left is neither resumed nor taken for an outcome of this one."""
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
        folder, identity = self.folder_of(cell), self.identities[cell.variant]
        if (found := read_outcome(folder, identity)) is not None:
            return found
        log = folder.with_name(f"{folder.name}.log")
        try:
            files.make(folder.parent)
            with log.open("wb") as output:
                code = self._run(self._job(cell, folder), output)
            found = read_outcome(folder, identity) if code == 0 else None
            if found is not None:
                shutil.move(log, folder / _LOG)
                return found
        except OSError as error:
            raise CellFailed(f"{one_line(error)}; {log}") from None
        raise CellFailed(_reason(code, log))

    def folder_of(self, cell: Cell) -> Path:
        """The run folder of a cell."""
        return self.folder / f"{folder_name(cell)}_{self.identities[cell.variant][:_DIGITS]}"

    def _job(self, cell: Cell, folder: Path) -> dict[str, object]:
        """What the process of a cell reads; a run that was killed is resumed, if it can be."""
        words = [*self.words(cell), "--output_dir", str(folder), "--disable_tqdm", "true"]
        last = last_checkpoint(folder)
        stopped = last is not None and has_optimizer(str(last))
        return {
            "flags": [*words, "--resume_from_checkpoint" if stopped else "--overwrite"],
            "identity": self.identities[cell.variant],
            "search": cell.stage == SEARCH,
            "embedded": str(self.embedded),
        }

    def _run(self, job: dict[str, object], output: BinaryIO) -> int:
        """The exit status of the process, which is ended if the user stops the comparison."""
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
    """The name of a cell's run folder, which no other cell has."""
    plain = cell.key.replace(" ", "_")
    safe = re.sub(r"[^\w.,=:+-]", "_", plain)[:_LONGEST]
    return safe if safe == plain else f"{safe}-{hashlib.sha256(plain.encode()).hexdigest()[:8]}"


def remove_weights(folder: Path) -> None:
    """Removes what can be loaded from a run folder, and keeps its results and its log."""
    for path in [*folder.glob("checkpoint-*"), folder / "stages", folder / "mlm_head"]:
        shutil.rmtree(path, ignore_errors=True)
    for path in folder.rglob("*.safetensors"):
        path.unlink(missing_ok=True)  # another process on this machine may have been quicker


def _reason(code: int, log: Path) -> str:
    """Why a run failed, in one line, with the place of its log."""
    if code < 0:
        name = signal.Signals(-code).name
        hint = " (out of memory?)" if code == -signal.SIGKILL else ""
        return f"ended by the signal {name}{hint}; {log}"
    lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    said = next((one for one in reversed(lines) if one.strip()), f"exit status {code}")
    return f"{said.removeprefix('error: ')[:300]}; {log}"
