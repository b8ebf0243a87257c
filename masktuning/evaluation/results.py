"""The files of an evaluation: the scores, and what was predicted for each text.

Shapes: n examples, C labels of the model.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from masktuning.config.files import write, write_json
from masktuning.data.load import LabelledTexts
from masktuning.evaluation.aggregate import EVALUATION_RESULTS
from masktuning.evaluation.metrics import NO_LABEL, likeliest, probabilities
from masktuning.evaluation.scoring import Scored

_TEXTS = ("text", "text_pair")
_DIGITS = 6  # of the probabilities


def predictions_path(folder: Path, name: str) -> Path:
    """Where the predictions of the set `name` are."""
    return folder / f"predictions_{name}.jsonl"


def write_results(folder: Path, measured: list[Scored]) -> None:
    """Writes results.json, and what was predicted for each set as predictions_<set>.jsonl."""
    metrics: dict[str, float] = {}
    for one in measured:
        metrics |= one.result.as_metrics()
    write_json(folder / EVALUATION_RESULTS, metrics)
    for one in measured:
        _write_lines(predictions_path(folder, one.result.name), prediction_rows(one))


def write_predictions(
    folder: Path, texts: LabelledTexts, logits_nC: NDArray[Any], labels: Sequence[str]
) -> Path:
    """Writes what was predicted for texts without labels; `labels` are the model's C names."""
    path = predictions_path(folder, texts.name)
    _write_lines(
        path,
        (
            {**given, "prediction": _name(labels, predicted), "probabilities": shares}
            for given, predicted, shares in zip(
                _texts(texts), likeliest(logits_nC), _shares(logits_nC, labels), strict=True
            )
        ),
    )
    return path


def prediction_rows(scored: Scored) -> Iterator[dict[str, Any]]:
    """One mapping for each text of a set, in the order of the set.

    `label` and `prediction` are label names of the set. `probabilities` has the model's label
    names, which are more where the set has fewer labels than the model. A prediction that is no
    label is None.
    """
    rows = zip(
        _texts(scored.texts),
        scored.texts.labels,
        scored.predictions,
        _shares(scored.logits, scored.model_labels),
        strict=True,
    )
    for given, gold, predicted, shares in rows:
        names = {"label": scored.labels[gold], "prediction": _name(scored.labels, predicted)}
        yield {**given, **names, "probabilities": shares}


def _name(labels: Sequence[str], label: int) -> str | None:
    return None if label == NO_LABEL else labels[label]


def _texts(texts: LabelledTexts) -> Iterator[dict[str, Any]]:
    """The row number and the text or texts of each row."""
    for i in range(len(texts)):
        yield {
            "example_id": i,
            **{name: column[i] for name, column in zip(_TEXTS, texts.texts, strict=False)},
        }


def _shares(logits_nC: NDArray[Any], labels: Sequence[str]) -> Iterator[dict[str, float]]:
    """The probability of each label of the model, for each row."""
    for shares in probabilities(logits_nC):
        yield dict(zip(labels, (round(float(one), _DIGITS) for one in shares), strict=True))


def _write_lines(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    lines = [json.dumps(row, ensure_ascii=False) for row in rows]
    write(path, "\n".join(lines) + "\n")
