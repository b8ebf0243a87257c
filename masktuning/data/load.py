"""From a task's sets to labelled texts: columns, label names, and which sets may be missing."""

from __future__ import annotations

import ast
import logging
import re
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

from masktuning.config.errors import UsageError
from masktuning.data.labels import LabelNames, reason_unknown
from masktuning.data.readers import Table
from masktuning.data.sources import SetNotFound, read_source
from masktuning.tasks import SetSpec

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class LabelledTexts:
    """The texts and label ids of one set, in the order of its source."""

    name: str
    role: str
    texts: list[list[str]]
    """One list per text column; two for sentence pairs."""
    labels: list[int]
    """The label id of each row."""
    groups: list[str] = field(default_factory=list)
    """The group of each row, by which accuracy is broken down; empty without such a column."""
    pairs: list[str] = field(default_factory=list)
    """A name per row that a text shares with its edited version; empty without such a column."""

    def __len__(self) -> int:
        return len(self.labels)

    def first(self, count: int | None) -> LabelledTexts:
        """The first `count` rows, or all rows for None."""
        return replace(
            self,
            texts=[column[:count] for column in self.texts],
            labels=self.labels[:count],
            groups=self.groups[:count],
            pairs=self.pairs[:count],
        )


def load_texts(
    specs: list[SetSpec],
    labels: list[str],
    data_dir: str | None,
    required: Collection[str] = (),
) -> list[LabelledTexts]:
    """Reads several sets; unions of other sets have no texts of their own and are not among them.

    Missing sets are skipped with a warning, except the training set, the first dev set, and the
    sets named in `required`.

    Raises:
        SetNotFound: listing all missing sets that may not be skipped.
        UsageError: if `data_dir` is not a folder, or as `load_set`.
    """
    texts: list[LabelledTexts] = []
    missing: list[str] = []
    dev_sets = [spec.name for spec in specs if spec.role == "dev"]
    for spec, found in load_each(specs, labels, data_dir):
        if isinstance(found, LabelledTexts):
            texts.append(found)
        elif spec.role == "train" or spec.name in [*required, *dev_sets[:1]]:
            missing.append(str(found))
        else:
            logger.warning("skipped: %s", found)
    if missing:
        raise SetNotFound("\n".join(missing))
    return texts


def load_each(
    specs: list[SetSpec], labels: list[str], data_dir: str | None
) -> Iterator[tuple[SetSpec, LabelledTexts | SetNotFound]]:
    """Reads the sets one by one and yields each with its texts, or with why it was not found.

    If the hub cannot be reached, it is asked only once for each data set.

    Raises:
        UsageError: if `data_dir` is not a folder, or as `load_set`.
    """
    if data_dir is not None and not Path(data_dir).is_dir():
        raise UsageError(f"{data_dir}: no such folder; --data_dir is where the task's files are")
    unreachable: set[str] = set()
    for spec in specs:
        if spec.union_of:
            continue
        try:
            ask_hub = spec.hub.get("id") not in unreachable
            yield spec, load_set(spec, labels, data_dir, ask_hub)
        except SetNotFound as error:
            if error.hub_down:
                unreachable.add(spec.hub["id"])
            yield spec, error


def load_set(
    spec: SetSpec, labels: list[str], data_dir: str | None, ask_hub: bool = True
) -> LabelledTexts:
    """Reads one set; label ids are places in the set's own labels, or else in `labels`.

    Raises:
        SetNotFound: if no source has the set.
        UsageError: on a missing column, an empty text or an unknown label, with its line.
    """
    table = read_source(spec, data_dir, ask_hub)
    texts = [texts_of(table, column, spec) for column in spec.text]
    ids = _label_ids(table, spec, spec.labels or labels)
    groups = table.column(spec.group_by) if spec.group_by else []
    pairs = table.column(spec.pair_id) if spec.pair_id else []
    return LabelledTexts(spec.name, spec.role, texts, ids, groups, pairs)


def _label_ids(table: Table, spec: SetSpec, labels: list[str]) -> list[int]:
    names = LabelNames(labels)
    column = table.column(spec.label)
    id_of = {raw: names.find(spec.label_names.get(raw, raw)) for raw in dict.fromkeys(column)}
    ids = []
    for line, raw in zip(table.lines, column, strict=True):
        label = id_of[raw]
        if label is None:
            raise UsageError(f"{table.origin}, line {line}: {reason_unknown(raw, labels)}")
        ids.append(label)
    return ids


def texts_of(table: Table, column: str, spec: SetSpec) -> list[str]:
    """One text column, decoded and cleaned as the set's description says."""
    texts = table.column(column)
    if spec.byte_literals:
        rows = zip(table.lines, texts, strict=True)
        texts = [_decoded(text, f"{table.origin}, line {line}") for line, text in rows]
    for line, text in zip(table.lines, texts, strict=True):
        if not text.strip() and not spec.empty_texts:
            raise UsageError(f"{table.origin}, line {line}: the text in {column!r} is empty")
    if spec.strip_breaks:
        breaks = re.compile(r"\s*(<br\s*/?>?\s*)+")
        return [breaks.sub(" ", text) if "<br" in text else text for text in texts]
    return texts


def _decoded(text: str, where: str) -> str:
    """The text of a Python byte literal in UTF-8."""
    try:
        value = ast.literal_eval(text)
        if not isinstance(value, bytes):
            raise ValueError
        return value.decode("utf-8")
    except (ValueError, SyntaxError):  # UnicodeDecodeError is a ValueError
        raise UsageError(
            f"{where}: not a byte literal of UTF-8 such as b'...': {text[:40]!r}"
        ) from None
