"""The cells of a comparison in an Optuna study, which any number of processes work through.

A cell is enqueued as a waiting trial that carries the cell in its attributes. Whoever takes it adds
its own name, and afterwards the outcome or the error. Trials of one cell may be several: two
processes enqueued it at once, or the worker of the first one died. The outcome of any of them is
that of the cell.
"""

from __future__ import annotations

import datetime
import json
import warnings
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from masktuning.config.errors import UsageError
from masktuning.experiments.outcome import Outcome
from masktuning.experiments.plan import Cell
from masktuning.experiments.storage import open_study, storage_errors
from masktuning.experiments.worker_id import is_gone, this_worker

if TYPE_CHECKING:
    from optuna import Trial
    from optuna.trial import FrozenTrial

_CELL, _WORKER, _OUTCOME, _ERROR, _NOTE = "cell", "worker", "outcome", "error", "note"
_IDENTITY = "identity"
_SECONDS_WITHOUT_NAME = 60  # after which a trial whose worker has not signed it is taken again


class CellFailed(Exception):
    """A run ended without an outcome; the message says why in one line."""


class Stopped(Exception):
    """A run was ended because the user stopped the comparison."""


class _NotMine(Exception):
    """A trial that is not to be run: it holds no cell, or another trial holds the same one."""


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

    def identify(self, identity: Mapping[str, Any]) -> None:
        """Records what the runs of a new study depend on, or compares it with what was recorded.

        Raises:
            UsageError: if it differs, since figures of both would be in one table.
        """
        with storage_errors(self._url):
            known = self._study.user_attrs.get(_IDENTITY)
            if known is None:
                self._study.set_user_attr(_IDENTITY, dict(identity))
                return
        changed = [
            f"{name} {_shortened(known.get(name))} -> {_shortened(identity.get(name))}"
            for name in sorted(known.keys() | identity.keys())
            if known.get(name) != identity.get(name)
        ]
        if changed:
            raise UsageError(
                f"the study {self._study.study_name!r} was begun otherwise: {'; '.join(changed)}. "
                "Give another --study, or go back to what it was begun with"
            )

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

    def retry(self) -> None:
        """Enqueues the failed cells once more."""
        failures = self.progress().failures
        cells = {cell.key: cell for cell in map(_cell_of, self._trials()) if cell is not None}
        for key in failures:
            self._enqueue(cells[key])

    def end_lost(self) -> None:
        """Ends the trials whose workers have ended, so that `enqueue` adds their cells again.

        Workers of this machine are found by their processes. Those of other machines are found by
        their heartbeat, which databases record and journal files do not.
        """
        from optuna.exceptions import ExperimentalWarning
        from optuna.storages import fail_stale_trials
        from optuna.trial import TrialState

        with storage_errors(self._url), warnings.catch_warnings():
            warnings.simplefilter("ignore", ExperimentalWarning)
            fail_stale_trials(self._study)
            for trial in self._trials():
                if trial.state == TrialState.RUNNING and _is_lost(trial):
                    self._study.tell(trial.number, state=TrialState.FAIL, skip_if_finished=True)

    def run_next(self, run: Callable[[Cell], Outcome], wanted: set[str]) -> bool:
        """Takes one of the waiting cells, and records what `run` makes of it.

        Args:
            run: returns the outcome of a cell, or raises CellFailed or Stopped.
            wanted: the keys of the cells that are part of this comparison; the study may hold
                others, of a comparison of more methods.

        Returns:
            Whether a cell was run.
        """
        from optuna.exceptions import UpdateFinishedTrialError

        ran = []

        def objective(trial: Trial) -> float:
            cell = self._taken(trial, wanted)
            ran.append(cell)
            return self._run(trial, cell, run)

        if not self.progress().waiting & wanted:
            return False
        with storage_errors(self._url):
            expected = (CellFailed, Stopped, _NotMine, UpdateFinishedTrialError)
            try:
                self._study.optimize(objective, n_trials=1, catch=expected)
            except ValueError as error:
                # The worker was silent for so long that others have taken the cell over.
                if "Cannot tell a" not in str(error):
                    raise
        return bool(ran)

    def _taken(self, trial: Trial, wanted: set[str]) -> Cell:
        """The cell of a trial, signed with the name of this process."""
        content = trial.user_attrs.get(_CELL)
        if content is None:
            raise _NotMine  # another process was quicker, so Optuna made a trial without a cell
        trial.set_user_attr(_WORKER, this_worker())
        cell = _cell(content)
        if cell.key not in wanted:
            trial.set_user_attr(_NOTE, "taken by a comparison that does not have it")
            raise _NotMine  # it is enqueued again by those that have it
        if self._is_held_by_other(trial.number, cell):
            trial.set_user_attr(_NOTE, "another trial holds the same cell")
            raise _NotMine
        return cell

    def _run(self, trial: Trial, cell: Cell, run: Callable[[Cell], Outcome]) -> float:
        """Runs a cell and records its outcome or its error."""
        try:
            outcome = run(cell)
        except CellFailed as error:  # a trial that fails without an error is enqueued again
            trial.set_user_attr(_ERROR, str(error))
            raise
        except Stopped:
            trial.set_user_attr(_NOTE, "stopped by the user")
            raise
        trial.set_user_attr(_OUTCOME, outcome.as_json())
        return outcome.dev

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
        with storage_errors(self._url):
            self._study.enqueue_trial({}, user_attrs={_CELL: content})

    def _trials(self) -> list[FrozenTrial]:
        with storage_errors(self._url):
            return self._study.get_trials(deepcopy=False)


def _cell_of(trial: FrozenTrial) -> Cell | None:
    """The cell that a trial carries; None for one that Optuna made for want of a waiting one."""
    content = trial.user_attrs.get(_CELL)
    return None if content is None else _cell(content)


def _cell(content: Mapping[str, Any]) -> Cell:
    point = tuple((name, value) for name, value in content["point"])
    return Cell(content["variant"], point, content["seed"], content["stage"])


def _is_lost(trial: FrozenTrial) -> bool:
    """Whether the worker of a running trial has ended, as far as this machine can tell."""
    worker = trial.user_attrs.get(_WORKER)
    if worker is not None:
        return is_gone(worker)
    begun = trial.datetime_start or datetime.datetime.now()
    return (datetime.datetime.now() - begun).total_seconds() > _SECONDS_WITHOUT_NAME


def _shortened(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
