"""Which of the packages that masktuning uses are installed, and their versions."""

from __future__ import annotations

from importlib import metadata
from typing import Any

from masktuning.config.errors import UsageError
from masktuning.config.version import __version__


def version_of(package: str) -> str:
    """The version of a package, or "not installed".

    That of masktuning is read from its source, so it is known in a checkout that was not installed.
    """
    if package == "masktuning":
        return __version__
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"


def import_datasets() -> Any:
    """Imports the package `datasets`, which the commands need to read and tokenise data.

    The ops, the model and MaskTuningTrainer work without it.

    Raises:
        UsageError: if it is not installed.
    """
    try:
        import datasets
    except ModuleNotFoundError as error:
        if error.name != "datasets":
            raise  # one of its own requirements is missing
        raise UsageError(
            "the package `datasets` is not installed, and this command tokenises its texts with "
            "it: pip install 'datasets>=4.0'"
        ) from None
    return datasets
