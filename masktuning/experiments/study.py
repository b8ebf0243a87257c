"""The cells of a comparison in an Optuna study, which any number of processes work through.

A cell is enqueued as a waiting trial that carries the cell in its attributes. Whoever takes it adds
its own name and, as long as it runs the cell, counts up a number. Afterwards it adds the outcome or
the error. A trial whose number stands still has lost its worker. A cell may have several trials:
two processes enqueued it at once, or the worker of the first one died. The outcome of any of them
is that of the cell.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from masktuning.experiments.outcome import Outcome
from masktuning.experiments.plan import Cell
from masktuning.experiments.recorded_identity import record_identity
from masktuning.experiments.storage import open_study, with_patience
from masktuning.experiments.worker_id import is_gone, this_worker

if TYPE_CHECKING:
    from optuna import Trial
    from optuna.trial import FrozenTrial

_CELL, _WORKER, _OUTCOME, _ERROR, _NOTE = "cell", "worker", "outcome", "error", "note"
_BEAT, _BEAT_SECONDS, _SILENT_SECONDS = "beat", 30.0, 150.0


class CellFailed(Exception):
    """A run ended without an outcome; the message says why in one line."""


class Stopped(Exception):
    """A run was ended because the user stopped the comparison."""


@dataclass
class Progress:
    """The state of every cell that was ever enqueued, by its key."""

    outcomes: dict[str, Outcome] = field(default_factory=dict)
    failures: dict[str, str] = field(default_factory=dict)
    """The error of each cell that failed and neither waits nor runs again."""
    waiting: set[str] = field(default_factory=set)
    running: set[str] = field(default_factory=set)

    def dev(self) -> dict[str, float]:
        """The in-distribution accuracy of each cell that is done, by its key."""
        return {key: outcome.dev for key, outcome in self.outcomes.items()}

    def known(self, cell: Cell) -> bool:
        """Whether the cell is done or will be, without being enqueued again."""
        states = (self.outcomes, self.failures, self.waiting, self.running)
        return any(cell.key in keys for keys in states)


class SharedStudy:
    """The study of one comparison; every thread opens its own.

    Args:
        url: the storage, as `open_study` takes it.
        name: the name of the study.

    Raises:
        UsageError: if the storage cannot be used; so do all methods.
    """

    def __init__(self, url: str, name: str) -> None:
        self._url = url
        self._study = open_study(url, name)
        self._beats: dict[int, tuple[int | None, float]] = {}

    def identify(self, identity: Mapping[str, Any]) -> None:
        """Records what the runs of a new study depend on, or compares it with what was recorded.

        What is recorded of each variant is compared for the variants that were there before.

        Raises:
            UsageError: if it differs, since figures of both would be in one table.
        """
        record_identity(self._url, self._study, identity)

    def progress(self) -> Progress:
        """What is known of all cells."""
        from optuna.trial import TrialState

        found, failed = Progress(), {}
        for trial in self._trials():
            if (cell := _cell_of(trial)) is None:
                continue
            if trial.state == TrialState.COMPLETE:
                found.outcomes[cell.key] = Outcome.from_json(trial.user_attrs[_OUTCOME])
            elif trial.state == TrialState.WAITING:
                found.waiting.add(cell.key)
            elif trial.state == TrialState.RUNNING:
                found.running.add(cell.key)
            elif _ERROR in trial.user_attrs:
                failed[cell.key] = str(trial.user_attrs[_ERROR])
        done = found.outcomes.keys() | found.waiting | found.running
        found.failures = {key: error for key, error in failed.items() if key not in done}
        return found

    def enqueue(self, cells: Iterable[Cell], progress: Progress) -> None:
        """Adds the cells that are not known yet, and notes in `progress` that they wait."""
        for cell in cells:
            if not progress.known(cell):
                self._enqueue(cell)
                progress.waiting.add(cell.key)

    def retry(self, variants: Collection[str]) -> None:
        """Enqueues the failed cells of these variants once more."""
        failures = self.progress().failures
        cells = {cell.key: cell for cell in map(_cell_of, self._trials()) if cell is not None}
        for key in failures:
            if cells[key].variant in variants:
                self._enqueue(cells[key])

    def end_lost(self) -> None:
        """Ends the trials whose workers have ended, so that `enqueue` adds their cells again.

        Workers of this machine are found by their processes. Those of other machines are lost when
        the number that they count up has stood still for two and a half minutes, by the clock of
        this process.
        """
        from optuna.trial import TrialState

        now = time.monotonic()
        for trial in self._trials():
            if trial.state != TrialState.RUNNING:
                continue
            beat = trial.user_attrs.get(_BEAT)
            if self._beats.get(trial.number, (None, now))[0] != beat:
                self._beats[trial.number] = (beat, now)
            _, since = self._beats.setdefault(trial.number, (beat, now))
            if now - since > _SILENT_SECONDS or is_gone(trial.user_attrs.get(_WORKER, "")):
                self._tell(trial.number)

    def run_next(self, run: Callable[[Cell], Outcome], wanted: Collection[str]) -> bool:
        """Takes one of the waiting cells, and records what `run` makes of it.

        Args:
            run: returns the outcome of a cell, or raises CellFailed or Stopped.
            wanted: the keys of the cells that are part of this comparison; the study may hold
                others, of a comparison of more methods.

        Returns:
            Whether a cell was run.
        """
        if not self.progress().waiting & set(wanted):
            return False
        trial = with_patience(self._url, self._study.ask)
        cell = self._taken(trial, wanted)
        if cell is None:
            self._tell(trial.number)
            return False
        attributes: dict[str, Any] = {_NOTE: "ended by an error of the program"}
        value = None
        try:
            with self._counting(trial):
                outcome = run(cell)
            attributes, value = {_OUTCOME: outcome.as_json()}, outcome.dev
        except CellFailed as error:
            attributes = {_ERROR: str(error)}
        except Stopped:
            attributes = {_NOTE: "stopped by the user"}
        finally:  # a trial that fails without an error is enqueued again
            self._record(trial, attributes, value)
        return True

    def _taken(self, trial: Trial, wanted: Collection[str]) -> Cell | None:
        """The cell of a trial, signed with the name of this process; None if it is not ours."""
        content = trial.user_attrs.get(_CELL)
        if content is None:
            return None  # another process was quicker, so Optuna made a trial without a cell
        with_patience(self._url, lambda: trial.set_user_attr(_WORKER, this_worker()))
        cell = _cell(content)
        if cell.key not in wanted or self._is_held_by_other(trial.number, cell):
            return None  # where it is wanted, it is enqueued again
        return cell

    @contextmanager
    def _counting(self, trial: Trial) -> Iterator[None]:
        """Within it a thread counts up the number by which others see that the worker is alive."""
        done = threading.Event()

        def count() -> None:
            from optuna.exceptions import OptunaError
            from sqlalchemy.exc import DBAPIError

            beat = 0
            while not done.wait(_BEAT_SECONDS):
                beat += 1
                # A database that is away, or a trial that others have ended: both are found out
                # when the outcome is recorded.
                with suppress(OptunaError, DBAPIError, OSError):
                    trial.set_user_attr(_BEAT, beat)

        thread = threading.Thread(target=count, daemon=True)
        thread.start()
        try:
            yield
        finally:
            done.set()
            thread.join()

    def _record(self, trial: Trial, attributes: Mapping[str, Any], value: float | None) -> None:
        """Ends a trial of this process with a value, or as failed, unless others have ended it."""
        from optuna.exceptions import UpdateFinishedTrialError

        def record() -> None:
            for name, content in attributes.items():
                trial.set_user_attr(name, content)

        with suppress(UpdateFinishedTrialError):
            with_patience(self._url, record)
        self._tell(trial.number, value)

    def _tell(self, number: int, value: float | None = None) -> None:
        """Ends a trial with a value, or as failed; one that has ended stays as it is."""
        from optuna.trial import TrialState

        state = TrialState.FAIL if value is None else TrialState.COMPLETE
        with_patience(
            self._url, lambda: self._study.tell(number, value, state, skip_if_finished=True)
        )

    def _is_held_by_other(self, number: int, cell: Cell) -> bool:
        """Whether a trial of the same cell is complete, or runs or waits with a lower number."""
        from optuna.trial import TrialState

        open_states = (TrialState.RUNNING, TrialState.WAITING)
        return any(
            other.state == TrialState.COMPLETE
            or (other.state in open_states and other.number < number)
            for other in self._trials()
            if other.number != number and _cell_of(other) == cell
        )

    def _enqueue(self, cell: Cell) -> None:
        content = {
            "variant": cell.variant,
            "point": [list(pair) for pair in cell.point],
            "seed": cell.seed,
            "stage": cell.stage,
        }
        with_patience(self._url, lambda: self._study.enqueue_trial({}, user_attrs={_CELL: content}))

    def _trials(self) -> list[FrozenTrial]:
        return with_patience(self._url, lambda: self._study.get_trials(deepcopy=False))


def _cell_of(trial: FrozenTrial) -> Cell | None:
    """The cell that a trial carries; None for one that Optuna made for want of a waiting one."""
    content = trial.user_attrs.get(_CELL)
    return None if content is None else _cell(content)


def _cell(content: Mapping[str, Any]) -> Cell:
    point = tuple((name, value) for name, value in content["point"])
    return Cell(content["variant"], point, content["seed"], content["stage"])
