"""From a task's sets to labelled texts: sources, columns, label names."""

from __future__ import annotations

import ast
import logging
import re
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field, replace
from hashlib import blake2b
from pathlib import Path

from masktuning.config.errors import UsageError
from masktuning.data.generated import examples
from masktuning.data.labels import LabelNames
from masktuning.data.readers import HubUnreachable, Table, read_hub, read_table
from masktuning.tasks import SetSpec

logger = logging.getLogger(__name__)


class SetNotFound(UsageError):
    """None of a set's sources is there; the message lists what was tried."""

    def __init__(self, message: str, hub_down: bool = False) -> None:
        super().__init__(message)
        self.hub_down = hub_down
        """Whether the hub could not be reached, so that asking for the same again is in vain."""


@dataclass(frozen=True)
class LabelledTexts:
    """One set as read: its texts (one or two a row) and label ids, in the order of the source."""

    name: str
    role: str
    texts: list[list[str]]
    """One list a text column."""
    labels: list[int]
    groups: list[str] = field(default_factory=list)
    """What accuracy is told apart by, a row; empty where the set has no such column."""
    pairs: list[str] = field(default_factory=list)
    """The same for a text and its edited version; empty where the set has no such column."""

    def __len__(self) -> int:
        return len(self.labels)

    def first(self, count: int | None) -> LabelledTexts:
        """The first `count` rows, or all."""
        return replace(
            self,
            texts=[column[:count] for column in self.texts],
            labels=self.labels[:count],
            groups=self.groups[:count],
            pairs=self.pairs[:count],
        )


def load_set(
    spec: SetSpec, labels: list[str], data_dir: str | None, ask_hub: bool = True
) -> LabelledTexts:
    """Reads one set, labels mapped by name to their place in `labels` (or in the set's own).

    Raises:
        SetNotFound: if no source has it.
        UsageError: on a missing column, an empty text or a label that is none of those.
    """
    table = _read_source(spec, data_dir, ask_hub)
    texts = [_texts(table, column, spec) for column in spec.text]
    own = spec.labels or labels
    names = LabelNames(own)
    label_ids = []
    for line, raw in zip(table.lines, table.column(spec.label), strict=True):
        label = names.find(spec.label_names.get(raw, raw))
        if label is None:
            raise UsageError(
                f"{table.origin}, line {line}: label {raw!r} is none of {', '.join(own)}"
            )
        label_ids.append(label)
    groups = table.column(spec.group) if spec.group else []
    pairs = table.column(spec.pair) if spec.pair else []
    return LabelledTexts(spec.name, spec.role, texts, label_ids, groups, pairs)


def load_texts(
    specs: list[SetSpec],
    labels: list[str],
    data_dir: str | None,
    required: Collection[str] = (),
) -> list[LabelledTexts]:
    """Several sets; one that is not there is named and left out, but for train and the first dev.

    Sets that combine others have no texts of their own, and are passed over.

    Raises:
        UsageError: as `load_set`; for a set that is not there if it is named in `required`; if
            `data_dir` is no folder.
    """
    texts: list[LabelledTexts] = []
    missing: list[str] = []
    devs = [spec.name for spec in specs if spec.role == "dev"]
    for spec, found in load_each(specs, labels, data_dir):
        if isinstance(found, LabelledTexts):
            texts.append(found)
        elif spec.role == "train" or spec.name in [*required, *devs[:1]]:
            missing.append(str(found))
        else:
            logger.warning("left out: %s", found)
    if missing:
        raise SetNotFound("\n".join(missing))
    return texts


def load_each(
    specs: list[SetSpec], labels: list[str], data_dir: str | None
) -> Iterator[tuple[SetSpec, LabelledTexts | SetNotFound]]:
    """The same one by one; for a data set of an unreachable hub, not in its cache, only once."""
    if data_dir is not None and not Path(data_dir).is_dir():
        raise UsageError(f"{data_dir}: no such folder; --data_dir is where the task's files are")
    unreachable: set[str] = set()
    for spec in specs:
        if spec.combines:
            continue
        try:
            ask_hub = spec.hub.get("id") not in unreachable
            yield spec, load_set(spec, labels, data_dir, ask_hub)
        except SetNotFound as error:
            if error.hub_down:
                unreachable.add(spec.hub["id"])
            yield spec, error


def _read_source(spec: SetSpec, data_dir: str | None, ask_hub: bool) -> Table:
    if spec.generated:
        texts, labels = examples(spec.generated)
        if len(texts[0]) != len(spec.text):
            raise UsageError(
                f"{spec.name}: generated set {spec.generated} has {len(texts[0])} text column(s)"
            )
        columns = {name: [text[i] for text in texts] for i, name in enumerate(spec.text)}
        columns[spec.label] = labels
        return Table(f"generated set {spec.generated}", columns, list(range(1, len(texts) + 1)))
    return _part(_read(spec, data_dir, ask_hub), spec)


def _read(spec: SetSpec, data_dir: str | None, ask_hub: bool) -> Table:
    """The file, or where it is not there the hub's copy.

    Raises:
        SetNotFound: if neither is there, with what was tried and what to download.
    """
    path = Path(data_dir or "") / spec.file
    published = bool(spec.home or spec.hub)
    if spec.file and (path.exists() or not published):
        folders = [*spec.label_names] if path.is_dir() else []
        return read_table(path, spec.quoting, spec.format, spec.skip_broken_rows, folders)
    tried = [f"not found: {path}"] if spec.file and data_dir is not None else []
    hub_down = False
    if spec.hub and not ask_hub:
        tried.append(f"{spec.hub['id']} not asked for: the hub cannot be reached")
    elif spec.hub:
        try:
            table = read_hub(**spec.hub)
        except UsageError as error:
            if not (tried or spec.home):
                raise
            tried.append(str(error))
            hub_down = isinstance(error, HubUnreachable)
        else:
            if tried:
                logger.warning("%s: no %s, so read from %s", spec.name, path, table.origin)
            return table
    if spec.file and data_dir is None:
        tried.append(f"give --data_dir DIR with DIR/{spec.file}")
    if spec.home:
        tried.append(f"published at {spec.home}")
    raise SetNotFound(f"{spec.name}: {'; '.join(tried)}", hub_down)


def _part(table: Table, spec: SetSpec) -> Table:
    """The tenth of the rows whose texts have the lowest hashes, or the others, or all.

    By the texts, since a folder and the hub's copy hold the same ones in another order.
    """
    if not spec.tenth:
        return table
    texts = list(zip(*(table.column(name) for name in spec.text), strict=True))
    keys = [blake2b("\0".join(text).encode()).digest() for text in texts]
    ranked = sorted(range(len(keys)), key=lambda i: (keys[i], i))
    lowest = set(ranked[: len(keys) // 10])
    rows = [i for i in range(len(keys)) if (i in lowest) == (spec.tenth == "only")]
    columns = {name: [values[i] for i in rows] for name, values in table.columns.items()}
    return replace(table, columns=columns, lines=[table.lines[i] for i in rows])


def _texts(table: Table, column: str, spec: SetSpec) -> list[str]:
    texts = table.column(column)
    if spec.byte_literals:
        rows = zip(table.lines, texts, strict=True)
        texts = [_decoded(text, f"{table.origin}, line {line}") for line, text in rows]
    for line, text in zip(table.lines, texts, strict=True):
        if not text.strip() and not spec.empty_texts:
            raise UsageError(f"{table.origin}, line {line}: the text in {column!r} is empty")
    if spec.strip_breaks:
        return [re.sub(r"\s*(<br\s*/?>?\s*)+", " ", text) for text in texts]
    return texts


def _decoded(text: str, where: str) -> str:
    try:
        value = ast.literal_eval(text)
        if not isinstance(value, bytes):
            raise ValueError
        return value.decode("utf-8")
    except (ValueError, SyntaxError):  # UnicodeDecodeError is a ValueError
        raise UsageError(f"{where}: not a byte literal of UTF-8, b'...': {text[:40]!r}") from None
