"""Cells in a study: shared by processes, taken up again after a kill, run once each."""

import os
import pwd
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from contextlib import ExitStack, contextmanager
from pathlib import Path

import numpy as np
import pytest
from stand_in import MadeUpRunner, made_up, plan, wait_for, work

from masktuning.config.errors import UsageError
from masktuning.experiments import recorded_identity
from masktuning.experiments import study as study_module
from masktuning.experiments.outcome import Outcome, SetOutcome
from masktuning.experiments.plan import Cell
from masktuning.experiments.storage import hidden, open_study
from masktuning.experiments.study import CellFailed, Progress, SharedStudy, Stopped
from masktuning.experiments.worker_id import is_gone, this_worker

POINTS = ((("lr", "1"),), (("lr", "2"),), (("lr", "3"),))


def servers():
    """The folder of PostgreSQL's programs, if they are installed."""
    found = shutil.which("initdb")
    folders = [Path(found).parent] if found else []
    return [*folders, *sorted(Path("/usr/lib/postgresql").glob("*/bin"))]


@pytest.fixture(scope="module")
def postgresql():
    """The URL of a PostgreSQL server of its own; skips where it is not installed."""
    psycopg = pytest.importorskip("psycopg")
    if not servers():
        pytest.skip("PostgreSQL is not installed")
    programs, other = servers()[0], {}
    if os.geteuid() == 0 and "postgres" not in {user.pw_name for user in pwd.getpwall()}:
        pytest.skip("PostgreSQL does not run as root, and there is no user postgres")
    with tempfile.TemporaryDirectory(prefix="postgresql-") as folder:
        if os.geteuid() == 0:  # PostgreSQL does not run as root
            other = {"user": "postgres", "group": "postgres"}
            shutil.chown(folder, **other)
        data = f"{folder}/data"
        start = [programs / "initdb", "-D", data, "-A", "trust", "-U", "masktuning"]
        subprocess.run(start, check=True, capture_output=True, cwd=folder, **other)
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        words = [
            programs / "postgres",
            "-D",
            data,
            "-p",
            str(port),
            "-h",
            "127.0.0.1",
            "-k",
            folder,
        ]
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        with subprocess.Popen(words, cwd=folder, **quiet, **other) as server:
            url = f"postgresql://masktuning@127.0.0.1:{port}/postgres"
            try:
                wait_for(lambda: answers(psycopg, url))
                yield url
            finally:
                server.send_signal(signal.SIGINT)


def answers(psycopg, url):
    """Whether a server accepts connections."""
    try:
        psycopg.connect(url).close()
    except psycopg.OperationalError:
        return False
    return True


@pytest.fixture(params=["sqlite", "journal", "postgresql"])
def url(request, tmp_path):
    """The URL of an empty storage of each kind."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/study.db"
    if request.param == "journal":
        return f"{tmp_path}/study.journal"
    return request.getfixturevalue("postgresql")


@contextmanager
def started(url, folder, seconds, gate=""):
    """A process of its own that works through the plan of `stand_in`; it is ended afterwards."""
    words = [sys.executable, str(Path(__file__).with_name("stand_in.py")), url, str(folder)]
    with subprocess.Popen([*words, seconds, gate], stdout=subprocess.DEVNULL) as process:
        try:
            yield process
        finally:
            process.kill()


def lines(path):
    return path.read_text().split("\n")[:-1] if path.is_file() else []


def clear(url):
    """Removes what other tests left in a database that they share."""
    if url.startswith("postgresql"):
        import optuna

        storage = open_study(url, "shared")._storage
        optuna.delete_study(study_name="shared", storage=storage)


def test_an_outcome_passes_through_json_unchanged():
    generator = np.random.default_rng(0)
    sets = {
        "dev": SetOutcome("dev", generator.random(13) < 0.5, {"f1": 0.25}),
        "ood": SetOutcome("ood", generator.random(16) < 0.5),
    }
    before = Outcome(sets, 1.5, 200.0, "here", "there", ("one text was cut",))
    after = Outcome.from_json(before.as_json())
    assert (after.seconds, after.memory_mb, after.machine, after.folder) == (
        *(1.5, 200.0),
        *("here", "there"),
    )
    assert after.warnings == ("one text was cut",)
    for name, one in sets.items():
        assert after.sets[name].role == one.role and after.sets[name].more == one.more
        np.testing.assert_array_equal(after.sets[name].correct, one.correct)
    assert before.dev == sets["dev"].correct.sum() / 13


def test_a_plan_is_worked_through_with_its_search_first(url, tmp_path):
    clear(url)
    of = plan(points=POINTS)
    progress = work(url, "shared", of, MadeUpRunner(tmp_path / "runs"), jobs=2)
    begun = lines(tmp_path / "runs" / "begun.txt")
    assert len(progress.outcomes) == 3 + 4 and Counter(begun).most_common(1)[0][1] == 1
    means = {
        point: made_up(Cell("b:x=1", point, 1001, "search"), "").sets["dev"].correct.mean()
        for point in POINTS
    }
    best = max(POINTS, key=lambda point: means[point])
    finals = {key for key in progress.outcomes if key.startswith("final b")}
    assert finals == {Cell("b:x=1", best, seed, "final").key for seed in (1, 2)}


def test_a_killed_process_loses_the_cell_that_it_ran(url, tmp_path):
    clear(url)
    with started(url, tmp_path, "0,0,600") as first:
        wait_for(lambda: len(lines(tmp_path / "begun.txt")) == 3)
        first.kill()
    ended = lines(tmp_path / "ended.txt")
    of = plan(seeds=3)
    progress = work(url, "shared", of, MadeUpRunner(tmp_path))
    cells = of.final_cells({"a": (), "b:x=1": ()})
    assert progress.outcomes.keys() == {cell.key for cell in cells}
    for cell in cells:
        expected = made_up(cell, "").sets["far"].correct
        np.testing.assert_array_equal(progress.outcomes[cell.key].sets["far"].correct, expected)
    begun = lines(tmp_path / "begun.txt")
    again = [key for key, count in Counter(begun).items() if count > 1]
    assert len(ended) == 2 and again == [begun[2]]


def test_two_processes_share_the_cells(url, tmp_path):
    """Each waits with its first cell until the other has begun one, too."""
    clear(url)
    names = ("one", "two")
    gates = [str(tmp_path / name / "begun.txt") for name in reversed(names)]
    with ExitStack() as stack:
        processes = [
            stack.enter_context(started(url, tmp_path / name, "0", gate))
            for name, gate in zip(names, gates, strict=True)
        ]
        assert [process.wait(timeout=300) for process in processes] == [0, 0]
    one, two = (lines(tmp_path / name / "begun.txt") for name in names)
    assert one and two
    cells = plan(seeds=3).final_cells({"a": (), "b:x=1": ()})
    assert Counter([*one, *two]) == Counter(cell.key for cell in cells)  # each of them once


def test_a_cell_of_a_machine_that_is_silent_is_taken_over(url, tmp_path, monkeypatch):
    """The worker seems to be on another machine; its number stands still."""
    clear(url)
    monkeypatch.setattr(study_module, "this_worker", lambda: "elsewhere:x/y:1:1.0")
    other, of = SharedStudy(url, "shared"), plan(variants=("a",), seeds=1)
    cells = of.final_cells({"a": ()})
    other.enqueue(cells, other.progress())
    other._taken(other._study.ask(), {cells[0].key})  # and never heard of again
    watcher = SharedStudy(url, "shared")
    watcher.end_lost()
    assert watcher.progress().running  # it may be alive
    monkeypatch.setattr(study_module, "_SILENT_SECONDS", 0.05)
    time.sleep(0.1)
    watcher.end_lost()
    assert not watcher.progress().running and not watcher.progress().failures
    monkeypatch.undo()
    assert len(work(url, "shared", of, MadeUpRunner(tmp_path)).outcomes) == 1


def test_a_worker_that_counts_up_is_left_alone(tmp_path, monkeypatch):
    url, of = f"sqlite:///{tmp_path}/study.db", plan(variants=("a",), seeds=1)
    monkeypatch.setattr(study_module, "_BEAT_SECONDS", 0.01)
    monkeypatch.setattr(study_module, "this_worker", lambda: "elsewhere:x/y:1:1.0")
    study, watcher = SharedStudy(url, "s"), SharedStudy(url, "s")
    study.enqueue(of.final_cells({"a": ()}), study.progress())
    beats = set()

    def watched(cell):
        def counted():
            trial = watcher._study.get_trials()[0]
            beats.add(trial.user_attrs.get("beat"))
            return len(beats - {None}) > 1

        wait_for(counted)
        watcher.end_lost()
        return made_up(cell, tmp_path)

    assert study.run_next(watched, {"final a seed=1"})
    assert len(study.progress().outcomes) == 1


def test_a_database_that_is_away_for_a_while_loses_nothing(tmp_path, monkeypatch):
    """It is locked when the outcome is to be recorded, and free again later."""
    monkeypatch.setattr("masktuning.experiments.storage._LOCK_SECONDS", 0.05)
    monkeypatch.setattr("masktuning.experiments.storage._PAUSE_SECONDS", 0.05)
    url, of = f"sqlite:///{tmp_path}/study.db", plan(variants=("a",), seeds=1)
    study = SharedStudy(url, "s")
    study.enqueue(of.final_cells({"a": ()}), study.progress())
    database = sqlite3.connect(tmp_path / "study.db", check_same_thread=False)
    free = threading.Timer(1.0, database.rollback)

    def locking(cell):
        database.execute("begin exclusive")
        free.start()
        return made_up(cell, tmp_path)

    assert study.run_next(locking, {"final a seed=1"})
    free.join()
    database.close()
    assert len(study.progress().outcomes) == 1


def test_a_database_that_stays_away_is_one_line(tmp_path, monkeypatch):
    monkeypatch.setattr("masktuning.experiments.storage._LOCK_SECONDS", 0.05)
    monkeypatch.setattr("masktuning.experiments.storage._OUTAGE_SECONDS", 0.0)
    url, of = f"sqlite:///{tmp_path}/study.db", plan(variants=("a",), seeds=1)
    study = SharedStudy(url, "s")
    study.enqueue(of.final_cells({"a": ()}), study.progress())
    database = sqlite3.connect(tmp_path / "study.db")

    def locking(cell):
        database.execute("begin exclusive")
        return made_up(cell, tmp_path)

    with pytest.raises(UsageError, match="another program has locked the database"):
        study.run_next(locking, {"final a seed=1"})
    database.close()


def test_a_failed_cell_keeps_its_error_and_the_others_go_on(tmp_path):
    url, of = f"sqlite:///{tmp_path}/study.db", plan()
    bad = "final a seed=2"
    progress = work(url, "s", of, MadeUpRunner(tmp_path, failing=(bad,)))
    assert progress.failures == {bad: "made to fail"} and len(progress.outcomes) == 3
    progress = work(url, "s", of, MadeUpRunner(tmp_path))  # it is not run again unasked
    assert progress.failures == {bad: "made to fail"}
    SharedStudy(url, "s").retry({"b:x=1"})
    assert SharedStudy(url, "s").progress().failures
    SharedStudy(url, "s").retry({"a"})
    progress = work(url, "s", of, MadeUpRunner(tmp_path))
    assert not progress.failures and len(progress.outcomes) == 4


def test_two_trials_of_one_cell_are_run_once(tmp_path):
    url, of = f"sqlite:///{tmp_path}/study.db", plan(variants=("a",), seeds=1)
    one, other = SharedStudy(url, "s"), SharedStudy(url, "s")
    known = [study.progress() for study in (one, other)]  # both see that it is missing
    for study, progress in zip((one, other), known, strict=True):
        study.enqueue(of.final_cells({"a": ()}), progress)
    work(url, "s", of, MadeUpRunner(tmp_path))
    work(url, "s", of, MadeUpRunner(tmp_path))
    assert lines(tmp_path / "begun.txt") == ["final a seed=1"]


def test_a_cell_of_a_larger_comparison_is_left_to_it(tmp_path):
    url = f"sqlite:///{tmp_path}/study.db"
    larger, smaller = plan(), plan(variants=("b:x=1",))
    study = SharedStudy(url, "s")
    study.enqueue(larger.final_cells({"a": (), "b:x=1": ()}), study.progress())
    progress = work(url, "s", smaller, MadeUpRunner(tmp_path))
    assert {key.split(" ")[1] for key in progress.outcomes} == {"b:x=1"}
    progress = work(url, "s", larger, MadeUpRunner(tmp_path))
    assert len(progress.outcomes) == 4 and max(Counter(lines(tmp_path / "begun.txt")).values()) == 1


def test_a_stopped_cell_is_run_again(tmp_path):
    url, of = f"sqlite:///{tmp_path}/study.db", plan(variants=("a",), seeds=1)
    study = SharedStudy(url, "s")
    study.enqueue(of.final_cells({"a": ()}), study.progress())

    def stopped(cell):
        raise Stopped

    assert study.run_next(stopped, {"final a seed=1"})
    assert not study.progress().failures and not study.progress().waiting
    assert len(work(url, "s", of, MadeUpRunner(tmp_path)).outcomes) == 1


def test_an_unexpected_error_is_not_swallowed(tmp_path):
    study = SharedStudy(f"sqlite:///{tmp_path}/study.db", "s")
    study.enqueue(plan(variants=("a",), seeds=1).final_cells({"a": ()}), study.progress())

    def broken(cell):
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        study.run_next(broken, {"final a seed=1"})


@pytest.mark.parametrize("keep", ["best", "all"])
def test_only_the_best_run_keeps_its_weights(tmp_path, keep):
    url, of = f"sqlite:///{tmp_path}/study.db", plan(points=POINTS[:2], seeds=3)
    progress = work(url, "s", of, MadeUpRunner(tmp_path), keep=keep)
    kept = {path.parent.name for path in tmp_path.glob("*/model.safetensors")}
    assert len(progress.outcomes) == 2 + 6 == len([*tmp_path.glob("*seed*")])
    if keep == "all":
        assert len(kept) == 8
        return
    best = set()
    for variant in ("a", "b:x=1"):
        dev = {key: one.dev for key, one in progress.outcomes.items() if f"final {variant}" in key}
        best |= {max(sorted(dev), key=dev.__getitem__).replace(" ", "_")}
    assert kept == best


def test_a_study_that_was_begun_otherwise_is_refused(tmp_path):
    def identity(code="abc", rows="3 rows 12", **variants):
        return {"code": code, "texts": {"dev": rows}, "variants": variants}

    study = SharedStudy(f"sqlite:///{tmp_path}/study.db", "s")
    study.identify(identity(a={"lr": 1.0}))
    study.identify(identity(b={"lr": 2.0}))  # a further variant, without the first one
    study.identify(identity(a={"lr": 1.0}, b={"lr": 2.0}))
    with pytest.raises(UsageError, match=r"study 's' was begun otherwise: code abc -> def\. Give"):
        study.identify(identity(code="def", a={"lr": 1.0}))
    with pytest.raises(UsageError, match="texts dev 3 rows 12 -> 4 rows 12"):
        study.identify(identity(rows="4 rows 12", a={"lr": 1.0}))
    with pytest.raises(UsageError, match=r"variants b lr 2\.0 -> 3\.0"):
        study.identify(identity(b={"lr": 3.0}))
    with pytest.raises(UsageError, match=r"variants b steps None -> 4"):
        study.identify(identity(b={"lr": 2.0, "steps": 4}))


def test_variants_that_two_machines_record_at_once_are_both_kept(tmp_path, monkeypatch):
    def identity(**variants):
        return {"code": "abc", "texts": {}, "variants": variants}

    url = f"sqlite:///{tmp_path}/study.db"
    one, other = SharedStudy(url, "s"), SharedStudy(url, "s")
    recorded = recorded_identity._recorded

    def meanwhile(*arguments):
        found = recorded(*arguments)
        monkeypatch.setattr(recorded_identity, "_recorded", recorded)
        other.identify(identity(plain={"lr": 1.0}, poe={"lr": 2.0}))
        return found

    monkeypatch.setattr(recorded_identity, "_recorded", meanwhile)
    one.identify(identity(plain={"lr": 1.0}, tuned={"lr": 3.0}))
    for name, lr in (("poe", r"2\.0"), ("tuned", r"3\.0")):
        with pytest.raises(UsageError, match=rf"variants {name} lr {lr} -> 5\.0"):
            SharedStudy(url, "s").identify(identity(**{name: {"lr": 5.0}}))


def test_a_worker_is_gone_when_its_process_has_ended():
    assert not is_gone(this_worker())
    where, start, number, began = this_worker().rsplit(":", 3)
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    assert is_gone(f"{where}:{start}:{process.pid}:1.0")
    assert not is_gone(f"elsewhere:{start}:{process.pid}:1.0")
    assert is_gone(f"{where}:{start}:{number}:{float(began) - 100}")  # the id of another one now
    boot, _, namespace = start.partition("/")
    assert is_gone(f"{where}:earlier/{namespace}:{number}:{began}")  # before the machine's start
    assert not is_gone(f"{where}:{boot}/other:{number}:{began}")  # in another container
    assert not is_gone("")


class TestBadStorage:
    """Each is one line."""

    def test_no_url(self):
        with pytest.raises(UsageError, match="--storage nonsense: not a database URL"):
            open_study("nonsense", "s")

    def test_a_driver_that_is_missing_shows_no_password(self):
        with pytest.raises(UsageError, match="--storage oracle://me@host/db: install the driver"):
            open_study("oracle://me:secret@host/db", "s")

    def test_a_file_that_is_no_journal(self, tmp_path):
        (tmp_path / "x.journal").write_text("no journal\n")
        with pytest.raises(UsageError, match="not a journal file of optuna"):
            open_study(f"{tmp_path}/x.journal", "s")

    def test_an_unknown_database(self):
        with pytest.raises(UsageError, match="--storage fancy://x/y: not a database URL"):
            open_study("fancy://x/y", "s")

    def test_an_unreachable_server(self):
        pytest.importorskip("psycopg")
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        with pytest.raises(UsageError, match=r"the database cannot be used") as raised:
            open_study(f"postgresql://user:secret@127.0.0.1:{port}/x", "s")
        assert "secret" not in str(raised.value) and "\n" not in str(raised.value)

    def test_a_file_that_is_no_database(self, tmp_path):
        (tmp_path / "study.db").write_text("not a database, but long enough to be one " * 50)
        with pytest.raises(UsageError, match=r"the database cannot be used.*not a database"):
            open_study(f"sqlite:///{tmp_path}/study.db", "s")

    def test_a_folder_that_cannot_be_made(self, tmp_path):
        (tmp_path / "file").write_text("")
        with pytest.raises(UsageError, match="cannot be made a folder"):
            open_study(f"sqlite:///{tmp_path}/file/study.db", "s")

    def test_another_version(self, tmp_path):
        url = f"sqlite:///{tmp_path}/study.db"
        open_study(url, "s")
        with sqlite3.connect(tmp_path / "study.db") as database:
            database.execute("update version_info set library_version = '0.1', schema_version = 1")
            database.execute("update alembic_version set version_num = 'v0.1.0'")
        with pytest.raises(UsageError, match="tables are of another version of optuna; upgrade"):
            open_study(url, "s")

    def test_a_locked_file(self, tmp_path, monkeypatch):
        monkeypatch.setattr("masktuning.experiments.storage._LOCK_SECONDS", 0.1)
        monkeypatch.setattr("masktuning.experiments.storage._OUTAGE_SECONDS", 0.0)
        url = f"sqlite:///{tmp_path}/study.db"
        study = SharedStudy(url, "s")
        with sqlite3.connect(tmp_path / "study.db") as database:
            database.execute("begin exclusive")
            with pytest.raises(UsageError, match="another program has locked the database"):
                study.enqueue(plan().final_cells({"a": ()}), Progress())

    def test_a_full_disk(self, tmp_path, monkeypatch):
        monkeypatch.setattr("masktuning.experiments.storage._OUTAGE_SECONDS", 0.0)
        url = f"sqlite:///{tmp_path}/study.db"
        study = SharedStudy(url, "s")
        study._study._storage._backend.engine.dispose()
        engine = study._study._storage._backend.engine

        from sqlalchemy import event

        @event.listens_for(engine, "connect")
        def limit(connection, record):
            connection.execute("pragma max_page_count = 1")

        with pytest.raises(UsageError, match="the disk cannot be written to"):
            study.enqueue(plan(seeds=300).final_cells({"a": ()}), Progress())

    def test_optuna_is_not_installed(self, monkeypatch):
        monkeypatch.setitem(sys.modules, "optuna", None)
        with pytest.raises(UsageError, match=r"pip install 'masktuning\[compare\]'"):
            open_study("sqlite://", "s")

    def test_a_password_is_not_shown(self):
        assert hidden("postgresql://me:secret@host/db") == "postgresql://me@host/db"
        assert hidden("sqlite:///a/b.db") == "sqlite:///a/b.db"


def test_what_a_failed_cell_says_reaches_the_study(tmp_path):
    study = SharedStudy(f"sqlite:///{tmp_path}/study.db", "s")
    study.enqueue(plan(variants=("a",), seeds=1).final_cells({"a": ()}), study.progress())

    def failing(cell):
        raise CellFailed("ended by the signal SIGKILL (out of memory?)")

    assert study.run_next(failing, {"final a seed=1"})
    assert "out of memory" in study.progress().failures["final a seed=1"]
