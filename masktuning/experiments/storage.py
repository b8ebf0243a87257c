"""Opens the storage of a study: an SQLite file, a database server, or Optuna's journal file."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from json import JSONDecodeError
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from masktuning.config import files
from masktuning.config.errors import UsageError, one_line

if TYPE_CHECKING:
    from optuna import Study
    from optuna.storages import BaseStorage

_LOCK_SECONDS = 60  # how long a process waits for others that write to an SQLite file
_ATTEMPTS = 5
_OUTAGE_SECONDS = 300.0  # for which a database may be away, while it is started again for example
_PAUSE_SECONDS = 3.0
JOURNAL = ".journal"
Result = TypeVar("Result")


def import_optuna() -> Any:
    """Imports the package `optuna`, which shares out the runs of a comparison.

    Raises:
        UsageError: if it is not installed.
    """
    try:
        import optuna
    except ModuleNotFoundError as error:
        if error.name != "optuna":
            raise  # one of its own requirements is missing
        raise UsageError(
            "the package `optuna` is not installed, and comparisons are kept in its studies: "
            "pip install 'masktuning[compare]'"
        ) from None
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    return optuna


def open_study(url: str, name: str) -> Study:
    """The study of that name, which is made if the storage lacks it.

    Args:
        url: a database URL of SQLAlchemy's, or the path of a journal file, which ends in .journal.
        name: the study's name within the storage.

    Raises:
        UsageError: if the storage cannot be opened.
    """
    optuna = import_optuna()
    from sqlalchemy.exc import DBAPIError

    def opened() -> Study:
        return optuna.create_study(
            storage=_storage(url), study_name=name, direction="maximize", load_if_exists=True
        )

    with storage_errors(url):
        for _ in range(_ATTEMPTS):
            try:
                return opened()
            except (optuna.exceptions.StorageInternalError, DBAPIError) as error:
                if not _made_at_once(error):
                    raise
                time.sleep(1)
        return opened()


def _made_at_once(error: Exception) -> bool:
    """Whether another process made the same tables at the same moment."""
    said = one_line(error.__cause__ if isinstance(error.__cause__, Exception) else error).lower()
    return any(words in said for words in ("already exists", "duplicate key", "unique constraint"))


@contextmanager
def storage_errors(url: str) -> Iterator[None]:
    """Turns what a storage raises when it cannot be used into one line, a UsageError."""
    from optuna.exceptions import StorageInternalError
    from sqlalchemy.exc import ArgumentError, DBAPIError, NoSuchModuleError

    named = f"--storage {hidden(url)}"
    try:
        yield
    except (ArgumentError, NoSuchModuleError) as error:
        raise UsageError(f"{named}: not a database URL ({one_line(error)})") from None
    except ImportError as error:
        driver = getattr(error.__cause__ or error, "name", None) or "of this database"
        raise UsageError(f"{named}: install the driver {driver} first") from None
    except (StorageInternalError, DBAPIError) as error:
        raise UsageError(f"{named}: {_reason(error)}") from None
    except RuntimeError as error:  # the tables of another version of Optuna
        if "version" not in str(error):
            raise
        raise UsageError(
            f"{named}: its tables are of another version of optuna; upgrade them with `optuna "
            "storage upgrade`, or give another --storage"
        ) from None
    except JSONDecodeError:
        raise UsageError(f"{named}: not a journal file of optuna") from None
    except OSError as error:
        raise UsageError(f"{named}: {one_line(error)}") from None


def with_patience(url: str, act: Callable[[], Result]) -> Result:
    """What `act` returns; a database that does not answer is asked again for some minutes.

    Raises:
        UsageError: if it does not answer by then.
    """
    from optuna.exceptions import StorageInternalError
    from sqlalchemy.exc import DBAPIError

    until = time.monotonic() + _OUTAGE_SECONDS
    with storage_errors(url):
        while True:
            try:
                return act()
            except (StorageInternalError, DBAPIError):
                if time.monotonic() > until:
                    raise
                time.sleep(_PAUSE_SECONDS)


def hidden(url: str) -> str:
    """A URL without the password that it may hold."""
    head, at, rest = url.rpartition("@")
    scheme, slashes, login = head.partition("://")
    return f"{scheme}{slashes}{login.partition(':')[0]}{at}{rest}"


def _reason(error: Exception) -> str:
    """What a database said, in one line with what to do."""
    said = one_line(error.__cause__ if isinstance(error.__cause__, Exception) else error)
    if "locked" in said:
        return f"another program has locked the database for more than {_LOCK_SECONDS} seconds"
    if "disk" in said or "full" in said:
        return f"the disk cannot be written to ({said[:160]}); what was finished before is kept"
    return f"the database cannot be used ({said[:200]})"


def _storage(url: str) -> BaseStorage:
    from optuna.storages import JournalStorage, RDBStorage
    from optuna.storages.journal import JournalFileBackend
    from sqlalchemy.pool import NullPool

    if url.endswith(JOURNAL):
        files.make(Path(url).parent)
        return JournalStorage(JournalFileBackend(url))
    sqlite = url.startswith("sqlite:///")
    if sqlite:
        files.make(Path(url.removeprefix("sqlite:///")).parent)
    storage = RDBStorage(
        _with_driver(url),
        # No connection stays open during a run, so that many workers do not use them up.
        engine_kwargs={
            "connect_args": {"timeout": _LOCK_SECONDS} if sqlite else {},
            "poolclass": NullPool,
        },
    )
    if sqlite:
        _lock_before_reading(storage.engine)
    return storage


def _lock_before_reading(engine: Any) -> None:
    """Makes every transaction of an SQLite engine take the lock for writing as it begins.

    Optuna reads whether a trial waits and then writes that it runs. SQLite, unlike other databases,
    does not lock the row that was read, so two processes could take the same trial.
    """
    from sqlalchemy import event

    def connect(connection: Any, record: Any) -> None:
        connection.isolation_level = None  # the driver begins no transactions by itself

    def begin(connection: Any) -> None:
        connection.exec_driver_sql("BEGIN IMMEDIATE")

    event.listen(engine, "connect", connect)
    event.listen(engine, "begin", begin)


def _with_driver(url: str) -> str:
    """The URL of a PostgreSQL server with the driver that the extra `postgresql` names."""
    scheme, _, rest = url.partition("://")
    return f"postgresql+psycopg://{rest}" if scheme in ("postgresql", "postgres") else url
