"""A comparison whose runs are made up, so that its processes start and end within a second."""

import sys
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from masktuning.experiments.board import Board
from masktuning.experiments.outcome import Outcome, SetOutcome
from masktuning.experiments.plan import Plan, Variant
from masktuning.experiments.run_cell import folder_name
from masktuning.experiments.study import CellFailed, SharedStudy
from masktuning.experiments.worker import Workers
from masktuning.experiments.worker_id import machine


def made_up(cell, folder, failing=()):
    """An outcome that follows from the cell alone; cells named in `failing` fail."""
    if cell.key in failing:
        raise CellFailed("made to fail")
    seed = [*cell.key.encode()]
    dev, ood = (np.random.default_rng([*seed, k]).random(40) < 0.7 for k in range(2))
    sets = {"dev": SetOutcome("dev", dev), "far": SetOutcome("ood", ood)}
    return Outcome(sets, 1.0, 100.0, machine(), str(folder))


@dataclass
class MadeUpRunner:
    """Writes the key of a cell into a file when it begins it, and into another when it ends it.

    `seconds` are what its first cells take, and the last of them what all others take. Each cell
    waits until the file `gate` is there, if one is given.
    """

    folder: Path
    seconds: tuple = (0.0,)
    gate: str = ""
    failing: tuple = ()
    stop: threading.Event = field(default_factory=threading.Event)

    def on_device(self, number):
        return self

    def folder_of(self, cell):
        return self.folder / folder_name(cell)

    def __call__(self, cell):
        folder = self.folder_of(cell)
        folder.mkdir(parents=True, exist_ok=True)
        with (self.folder / "begun.txt").open("a") as file:
            file.write(f"{cell.key}\n")
        while self.gate and not Path(self.gate).exists():
            time.sleep(0.05)
        count = len((self.folder / "begun.txt").read_text().splitlines())
        time.sleep(self.seconds[min(count, len(self.seconds)) - 1])
        outcome = made_up(cell, folder, self.failing)
        (folder / "model.safetensors").write_bytes(b"weights")
        with (self.folder / "ended.txt").open("a") as file:
            file.write(f"{cell.key}\n")
        return outcome


def plan(variants=("a", "b:x=1"), points=(), seeds=2, search_seeds=1):
    """A plan in which the last variant has the grid points `points`."""
    parsed = tuple(map(Variant.parse, variants))
    grids = {one.name: ((),) for one in parsed}
    if points:
        grids[parsed[-1].name] = tuple(points)
    search = tuple(range(1001, 1001 + search_seeds))
    return Plan(parsed, grids, search, tuple(range(1, seeds + 1)))


def work(url, name, of, runner, jobs=1, keep="best", spaces=None):
    """Works through a plan."""
    board = Board(of.count(), jobs, bar=False)
    Workers(of, spaces or {}, (url, name), runner, jobs, keep, board).run()
    return SharedStudy(url, name).progress()


def wait_for(condition):
    """Waits until something holds; three minutes are many times what it takes."""
    for _ in range(1800):
        if condition():
            return
        time.sleep(0.1)
    raise AssertionError("three minutes have passed")


if __name__ == "__main__":  # URL FOLDER SECONDS,SECONDS GATE
    url, folder, seconds, gate = sys.argv[1:]
    each = tuple(map(float, seconds.split(",")))
    work(url, "shared", plan(seeds=3), MadeUpRunner(Path(folder), each, gate))
