"""Works through the cells of a comparison, in as many processes at a time as were asked for."""

from __future__ import annotations

import os
import threading
from collections.abc import Mapping
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait

from masktuning.experiments.board import Board
from masktuning.experiments.choice import choices
from masktuning.experiments.outcome import Outcome
from masktuning.experiments.plan import FINAL, Cell, Plan
from masktuning.experiments.proposals import Space, with_proposals
from masktuning.experiments.run_cell import CellRunner, remove_weights
from masktuning.experiments.study import Progress, SharedStudy
from masktuning.experiments.worker_id import machine

_POLL_SECONDS = 2.0


def due_cells(plan: Plan, progress: Progress) -> list[Cell]:
    """The cells that can be run, given what is known: a final run needs its grid point first."""
    chosen = choices(plan, progress.dev(), set(progress.failures))
    return [*plan.search_cells(), *plan.final_cells(chosen)]


def is_complete(plan: Plan, progress: Progress) -> bool:
    """Whether no cell of the plan is left to run, here or elsewhere."""
    ended = progress.outcomes.keys() | progress.failures.keys()
    return all(cell.key in ended for cell in due_cells(plan, progress))


class Workers:
    """Runs the cells of a plan that are not run elsewhere.

    Args:
        plan: the comparison, without the grid points that are still to be proposed.
        spaces: what the points are proposed from, by variant.
        study: the URL of the storage and the name of the study.
        runner: what runs one cell; its event ends all runs.
        jobs: how many cells are run at a time.
        keep: "best" to remove the weights of all runs but the best one of each variant.
        board: what shows the progress.
    """

    def __init__(
        self,
        plan: Plan,
        spaces: Mapping[str, Space],
        study: tuple[str, str],
        runner: CellRunner,
        jobs: int,
        keep: str,
        board: Board,
    ) -> None:
        self._plan, self._spaces, self._study, self._runner = plan, spaces, study, runner
        self._jobs, self._keep, self._board = jobs, keep, board
        self._lock = threading.Lock()
        self._running: set[str] = set()  # the keys of the cells that this process runs
        self._without_weights: set[str] = set()

    def run(self) -> None:
        """Returns when every cell is done or has failed, here or elsewhere.

        Raises:
            UsageError: if the storage cannot be used any more.
            KeyboardInterrupt: after the runs were ended.
        """
        with ThreadPoolExecutor(self._jobs) as pool:
            futures = [pool.submit(self._work, number) for number in range(self._jobs)]
            try:
                while wait(futures, _POLL_SECONDS, FIRST_EXCEPTION).not_done:
                    if any(one.done() and one.exception() for one in futures):
                        break
                    self._board.refresh()
            finally:
                self._runner.stop.set()  # has an effect only if something was raised
        for future in futures:
            future.result()

    def _work(self, number: int) -> None:
        """What one of the threads does."""
        study = SharedStudy(*self._study)
        runner = self._runner.on_device(number)
        while not self._runner.stop.is_set():
            study.end_lost()
            progress = study.progress()
            plan = with_proposals(self._plan, self._spaces, progress.dev(), progress.failures)
            due = due_cells(plan, progress)
            study.enqueue(due, progress)
            self._note(plan, progress)
            if is_complete(plan, progress):
                return
            wanted = {cell.key for cell in due}
            if study.run_next(lambda cell: self._run(runner, cell), wanted):
                continue
            with self._lock:
                self._board.say_waiting((progress.running & wanted) - self._running)
            self._runner.stop.wait(_POLL_SECONDS)

    def _run(self, runner: CellRunner, cell: Cell) -> Outcome:
        """The outcome of a cell, which counts as run here until it has one."""
        with self._lock:
            self._running.add(cell.key)
        try:
            return runner(cell)
        finally:
            with self._lock:
                self._running.remove(cell.key)

    def _note(self, plan: Plan, progress: Progress) -> None:
        """Shows what is done, and removes the weights that are not to be kept."""
        with self._lock:
            self._board.show(plan, progress)
            if self._keep == "best":
                self._prune(plan, progress)

    def _prune(self, plan: Plan, progress: Progress) -> None:
        """Removes the weights of the runs on this machine but each variant's best final run."""
        here = machine()
        for variant in plan.variants:
            runs = {
                cell: outcome
                for cell in due_cells(plan, progress)
                if cell.variant == variant.name
                and (outcome := progress.outcomes.get(cell.key)) is not None
                and outcome.machine == here
            }
            final = [cell for cell in runs if cell.stage == FINAL]
            best = max(final, key=lambda cell: (runs[cell].dev, -cell.seed), default=None)
            for cell in runs:
                if cell != best and cell.key not in self._without_weights:
                    remove_weights(self._runner.folder_of(cell))
                    self._without_weights.add(cell.key)


def threads_of_a_job(jobs: int) -> str:
    """How many threads each of several runs at a time gets, as OMP_NUM_THREADS."""
    available = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return os.environ.get("OMP_NUM_THREADS") or str(max(1, (available or 1) // jobs))
