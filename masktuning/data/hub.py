"""Reads data sets of the Hugging Face hub into columns of text."""

from __future__ import annotations

from masktuning.config.errors import UsageError
from masktuning.config.installed import import_datasets
from masktuning.data.readers import Table, as_text


class HubUnreachable(UsageError):
    """The hub cannot be reached, and the data set is not in the local cache."""


def read_hub(
    id: str,
    split: str,
    config: str | None = None,
    revision: str | None = None,
    columns: dict[str, str] | None = None,
) -> Table:
    """The rows of one split of a data set on the hub, or in a local folder with such a layout.

    Class labels become their names. `columns` maps the data set's column names to new ones.

    Raises:
        HubUnreachable: if the hub cannot be reached and the data set is not in the local cache.
        UsageError: if the split cannot be read, with the reason; if `datasets` is not installed.
    """
    datasets = import_datasets()
    try:
        rows = datasets.load_dataset(id, config, split=split, revision=revision)
    except (OSError, ValueError, RuntimeError, datasets.exceptions.DatasetsError) as error:
        reason = str(error).strip().splitlines()[0]
        kind = HubUnreachable if isinstance(error, ConnectionError) else UsageError
        raise kind(
            f"the data set {id} ({split}) cannot be read: {type(error).__name__}: {reason}"
        ) from None
    found, nested = {}, {}
    for column, feature in rows.features.items():
        name, values = (columns or {}).get(column, column), rows[column]
        named = isinstance(feature, datasets.ClassLabel)
        found[name] = [
            feature.int2str(value) if named and value is not None and value >= 0 else as_text(value)
            for value in values
        ]
        first = next((i for i, one in enumerate(values, 1) if isinstance(one, list | dict)), None)
        if first is not None:
            nested[name] = first
    return Table(f"{id} ({split})", found, list(range(1, len(rows) + 1)), nested)
