"""From a task's sets to labelled texts: sources, columns, label names."""

from __future__ import annotations

import ast
import logging
import re
from dataclasses import dataclass, field, replace
from pathlib import Path

from masktuning.config import UsageError
from masktuning.demo.data import examples
from masktuning.labels import LabelNames
from masktuning.readers import Table, read_hub, read_table
from masktuning.tasks import SetSpec

logger = logging.getLogger(__name__)

_TENTH = 10


class SetNotFound(UsageError):
    """None of a set's sources is there; the message lists what was tried."""


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


def load_set(spec: SetSpec, labels: list[str], data_dir: str | None) -> LabelledTexts:
    """Reads one set, labels mapped by name to their place in `labels` (or in the set's own).

    Raises:
        SetNotFound: if no source has it.
        UsageError: on a missing column, an empty text or a label that is none of those.
    """
    table = _read_source(spec, data_dir)
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
    specs: list[SetSpec], labels: list[str], data_dir: str | None, required: bool = False
) -> list[LabelledTexts]:
    """Several sets; one that is not there is named and left out, but for train and the first dev.

    Sets that combine others have no texts of their own, and are passed over.

    Raises:
        UsageError: as `load_set`; for any set that is not there if `required`.
    """
    texts = []
    devs = [spec.name for spec in specs if spec.role == "dev"]
    for spec in specs:
        if spec.combines:
            continue
        try:
            texts.append(load_set(spec, labels, data_dir))
        except SetNotFound as error:
            if required or spec.role == "train" or spec.name in devs[:1]:
                raise
            logger.warning("left out: %s", error)
    return texts


def _read_source(spec: SetSpec, data_dir: str | None) -> Table:
    if spec.generated:
        texts, labels = examples(spec.generated)
        if len(texts[0]) != len(spec.text):
            raise UsageError(
                f"{spec.name}: generated set {spec.generated} has {len(texts[0])} text column(s)"
            )
        columns = {name: [text[i] for text in texts] for i, name in enumerate(spec.text)}
        columns[spec.label] = labels
        return Table(f"generated set {spec.generated}", columns, list(range(1, len(texts) + 1)))
    return _part(_read(spec, data_dir), spec.every_tenth)


def _read(spec: SetSpec, data_dir: str | None) -> Table:
    if data_dir is not None or not spec.hub:
        path = Path(data_dir or "") / spec.file
        if (spec.home or spec.hub) and not (spec.file and path.exists()):
            raise SetNotFound(f"{spec.name}: not found: {_wanted(spec, data_dir)}")
        return read_table(path, spec.quoting, spec.format, spec.skip_broken_rows)
    try:
        return read_hub(**spec.hub)
    except UsageError as error:
        if not spec.home:
            raise
        raise SetNotFound(f"{spec.name}: {error}; {_wanted(spec, data_dir)}") from None


def _wanted(spec: SetSpec, data_dir: str | None) -> str:
    """What was looked for, and what there is to download."""
    wanted = []
    if data_dir is not None:
        wanted.append(f"tried {Path(data_dir) / spec.file}" if spec.file else "it has no file")
    elif spec.file:
        wanted.append(f"give --data_dir DIR with DIR/{spec.file}")
    if data_dir is not None and spec.hub:
        wanted.append(f"without --data_dir it is read from the hub's {spec.hub['id']}")
    if spec.home:
        wanted.append(f"published at {spec.home}")
    return "; ".join(wanted)


def _part(table: Table, every_tenth: str) -> Table:
    """Every tenth row, or all the others, or all."""
    if not every_tenth:
        return table
    tenth = every_tenth == "only"
    rows = [i for i in range(len(table.lines)) if (i % _TENTH == 0) == tenth]
    columns = {name: [values[i] for i in rows] for name, values in table.columns.items()}
    return replace(table, columns=columns, lines=[table.lines[i] for i in rows])


def _texts(table: Table, column: str, spec: SetSpec) -> list[str]:
    texts = table.column(column)
    if spec.byte_literals:
        rows = zip(table.lines, texts, strict=True)
        texts = [_decoded(text, f"{table.origin}, line {line}") for line, text in rows]
    for line, text in zip(table.lines, texts, strict=True):
        if not text.strip():
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
