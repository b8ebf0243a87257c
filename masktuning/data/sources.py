"""From a set's description to the rows of its source: a local file, the hub, or generated texts."""

from __future__ import annotations

import logging
from dataclasses import replace
from hashlib import blake2b
from pathlib import Path

from masktuning.config.errors import UsageError
from masktuning.data.generated import examples
from masktuning.data.hub import HubUnreachable, read_hub
from masktuning.data.readers import Table, read_table
from masktuning.tasks import SetSpec

logger = logging.getLogger(__name__)


class SetNotFound(UsageError):
    """A set is in none of its sources; the message lists what was tried."""

    def __init__(self, message: str, hub_down: bool = False) -> None:
        super().__init__(message)
        self.hub_down = hub_down
        """Whether the hub could not be reached, so that asking it again is pointless."""


def read_source(spec: SetSpec, data_dir: str | None, ask_hub: bool) -> Table:
    """The rows of a set: generated ones, those of its file, or else those of the hub's copy.

    Raises:
        SetNotFound: if no source has the set; the message says where it is published.
        UsageError: if a source is there and cannot be read.
    """
    if spec.generated:
        return _generated(spec)
    path = Path(data_dir or "") / spec.file
    published = bool(spec.url or spec.hub)
    if spec.file and (path.exists() or not published):
        labels = [*spec.label_names] if path.is_dir() else []
        table = read_table(path, spec.quoting, spec.format, spec.skip_broken_rows, labels)
    else:
        table = _from_hub(spec, path, data_dir, ask_hub)
    return _hash_split(table, spec) if spec.hash_split else table


def _generated(spec: SetSpec) -> Table:
    texts, labels = examples(spec.generated)
    if len(texts[0]) != len(spec.text):
        raise UsageError(
            f"{spec.name}: the generated set {spec.generated} has {len(texts[0])} text column(s), "
            f"not {len(spec.text)}"
        )
    columns = {name: [text[i] for text in texts] for i, name in enumerate(spec.text)}
    columns[spec.label] = labels
    return Table(f"generated set {spec.generated}", columns, list(range(1, len(texts) + 1)))


def _from_hub(spec: SetSpec, path: Path, data_dir: str | None, ask_hub: bool) -> Table:
    """The hub's copy of a set whose file `path` does not exist.

    Raises:
        SetNotFound: if there is no copy or it cannot be read, with what the user can do.
    """
    tried = [f"not found: {path}"] if spec.file and data_dir is not None else []
    hub_down = False
    if spec.hub and not ask_hub:
        tried.append(f"{spec.hub['id']} was not requested, since the hub cannot be reached")
    elif spec.hub:
        try:
            table = read_hub(**spec.hub)
        except UsageError as error:
            if not (tried or spec.url):
                raise
            tried.append(str(error))
            hub_down = isinstance(error, HubUnreachable)
        else:
            if tried:
                logger.warning(
                    "%s: read from %s, since %s is missing", spec.name, table.origin, path
                )
            return table
    if spec.file and data_dir is None:
        tried.append(f"give --data_dir DIR with DIR/{spec.file}")
    if spec.url:
        tried.append(f"published at {spec.url}")
    raise SetNotFound(f"{spec.name}: {'; '.join(tried)}", hub_down)


def _hash_split(table: Table, spec: SetSpec) -> Table:
    """The part of the rows that `spec.hash_split` names; see `SetSpec.hash_split`.

    The hash is that of the texts, because a folder and the hub's copy hold the same texts in
    different orders.
    """
    texts = list(zip(*(table.column(name) for name in spec.text), strict=True))
    hashes = [blake2b("\0".join(text).encode()).digest() for text in texts]
    ranked = sorted(range(len(hashes)), key=lambda i: (hashes[i], i))
    held_out = set(ranked[: len(hashes) // 10])
    wanted = spec.hash_split == "held_out"
    rows = [i for i in range(len(hashes)) if (i in held_out) == wanted]
    columns = {name: [values[i] for i in rows] for name, values in table.columns.items()}
    return replace(table, columns=columns, lines=[table.lines[i] for i in rows])
