"""Predicts the labels of a file of texts piece by piece; a stopped run goes on where it was.

Shapes: n texts of a piece, C labels of the model.
"""

from __future__ import annotations

import csv
import io
import itertools
import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from masktuning.config.errors import UsageError
from masktuning.config.files import make
from masktuning.data.custom_task import guess_text_columns
from masktuning.data.readers import as_text
from masktuning.data.row_stream import RowStream, open_rows
from masktuning.data.tokenize import length_limit
from masktuning.evaluation.metrics import probabilities
from masktuning.evaluation.partial_output import PartialOutput
from masktuning.evaluation.run import label_names
from masktuning.modeling.loading import check_vocabulary, load_classifier

PIECE = 4096
"""Rows that are read, sorted by length and written together."""
Prediction = tuple[str, dict[str, float]]
"""A label and the probability of each."""


@dataclass(frozen=True)
class PredictionJob:
    """What to predict, with what, and where to."""

    model: str
    """Checkpoint folder or hub id."""
    input_file: Path
    """CSV, TSV, JSON Lines or Parquet."""
    output_file: Path
    """CSV or JSON Lines, with the columns of the input and those of the prediction."""
    text_columns: list[str]
    """One or two columns; none for those of the usual names."""
    label_names: list[str]
    """The model's label names; none for those of its config.json."""
    max_length: int
    """Tokens that longer texts are truncated to."""
    batch_size: int
    tokenizer_name: str | None = None
    revision: str | None = None
    use_cpu: bool = False
    progress: bool = True


def predict_file(job: PredictionJob) -> int:
    """Writes the predicted labels and their probabilities; returns the number of rows.

    Rows are read in pieces and classified in batches of texts of similar length. What has been
    written is in a partial file next to the output, which is renamed at the end; after a kill the
    same job goes on after the last whole piece.

    Raises:
        UsageError: for a model that cannot be loaded, a file that cannot be read or written, or a
            partial file of another job.
    """
    with open_rows(job.input_file) as stream:
        columns = job.text_columns or guess_text_columns(str(stream.path), stream.columns)
        classifier = _Classifier(job, columns)
        labels = classifier.labels
        added = _added(job, labels)
        _check_columns(stream, columns, added)
        make(job.output_file.parent)
        with PartialOutput(job.output_file, _identity(job, columns, labels)) as output:
            rows = itertools.islice(stream.rows, output.rows, None)
            shown = {"unit": "B", "unit_scale": True, "disable": not job.progress}
            with tqdm(total=stream.total, **shown) as bar:
                while piece := [*itertools.islice(rows, PIECE)]:
                    header = [] if output.rows else [*stream.columns, *added]
                    texts = [_texts(job, columns, line, row) for line, row in piece]
                    predicted = classifier(texts)
                    values = [[row[name] for name in stream.columns] for _, row in piece]
                    if job.output_file.suffix == ".jsonl":
                        text = _json_lines(stream.columns, values, predicted)
                    else:
                        text = _csv_lines(header, values, predicted)
                    output.append(text, len(piece))
                    bar.set_postfix_str(f"{output.rows:,} texts")
                    bar.update(min(stream.read(), stream.total) - bar.n)
            output.finish()
    return output.rows


class _Classifier:
    """The labels and probabilities of pieces of texts."""

    def __init__(self, job: PredictionJob, columns: list[str]) -> None:
        self.model, self.tokenizer = load_classifier(job.model, job.tokenizer_name, job.revision)
        if job.tokenizer_name is not None:
            check_vocabulary(self.tokenizer, self.model.config)
        self.labels = label_names(job.model, self.model.config, job.label_names)
        longest = length_limit(self.model, self.model.config, self.tokenizer)
        self.max_length, self.batch_size = min(job.max_length, longest), job.batch_size
        gpu = torch.cuda.is_available() and not job.use_cpu
        self.model.eval().to(torch.device("cuda" if gpu else "cpu"))

    @torch.inference_mode()
    def __call__(self, texts: list[list[str]]) -> list[Prediction]:
        """The label and the probabilities of each text, longest computed first."""
        columns = [list(column) for column in zip(*texts, strict=True)]
        encoded = self.tokenizer(*columns, truncation=True, max_length=self.max_length)
        order = np.argsort([-len(ids) for ids in encoded["input_ids"]], kind="stable")
        logits_nC = np.empty((len(texts), len(self.labels)), dtype=np.float32)
        for start in range(0, len(order), self.batch_size):
            chosen = order[start : start + self.batch_size]
            rows = {name: [values[i] for i in chosen] for name, values in encoded.items()}
            batch = self.tokenizer.pad(rows, return_tensors="pt").to(self.model.device)
            logits_nC[chosen] = self.model(**batch).logits.float().cpu().numpy()
        return [
            (
                self.labels[int(row.argmax())],
                dict(zip(self.labels, map(_rounded, row), strict=True)),
            )
            for row in probabilities(logits_nC)
        ]


def _rounded(share: float) -> float:
    return round(float(share), 6)


def _identity(job: PredictionJob, columns: list[str], labels: list[str]) -> dict[str, Any]:
    """What a partial output must have been begun with for the job to go on with it."""
    return {
        "model": job.model,
        "model_revision": job.revision,
        "tokenizer_name": job.tokenizer_name,
        "label_names": labels,
        "input_file": str(job.input_file.absolute()),
        "size of the input file": job.input_file.stat().st_size,
        "text_columns": columns,
        "max_length": job.max_length,
    }


def _check_columns(stream: RowStream, columns: list[str], added: list[str]) -> None:
    for name in columns:
        if name not in stream.columns:
            raise UsageError(
                f"{stream.path}: no column {name!r}; it has {', '.join(stream.columns)}"
            )
    if taken := {*added} & {*stream.columns}:
        raise UsageError(
            f"{stream.path}: has a column {sorted(taken)[0]!r} already, which the output adds: "
            "rename it"
        )


def _added(job: PredictionJob, labels: list[str]) -> list[str]:
    """The names of the columns that the output adds."""
    if job.output_file.suffix == ".jsonl":
        return ["prediction", "probabilities"]
    return ["prediction", *(f"probability_{label}" for label in labels)]


def _texts(job: PredictionJob, columns: list[str], line: int, row: dict[str, Any]) -> list[str]:
    """The texts of a row; UsageError for a value that is none."""
    for name in columns:
        if isinstance(row[name], list | dict):
            raise UsageError(f"{job.input_file}, line {line}: {name!r} is not a text or a number")
    return [as_text(row[name]) for name in columns]


def _json_lines(columns: list[str], values: list[list[Any]], predicted: list[Prediction]) -> str:
    """The lines of a piece as JSON Lines, whose values are those of the input."""
    text = io.StringIO()
    for row, (label, shares) in zip(values, predicted, strict=True):
        line = dict(zip(columns, map(_as_json, row), strict=True))
        line |= {"prediction": label, "probabilities": shares}
        text.write(json.dumps(line, ensure_ascii=False, default=str) + "\n")
    return text.getvalue()


def _csv_lines(header: list[str], values: list[list[Any]], predicted: list[Prediction]) -> str:
    """The lines of a piece as CSV, in which lists and mappings of the input are JSON."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    # A carriage return within a cell ends a line for readers, but does not make csv quote the cell.
    quoting = csv.writer(text, lineterminator="\n", quoting=csv.QUOTE_ALL)
    if header:
        writer.writerow(header)
    for row, (label, shares) in zip(values, predicted, strict=True):
        cells = [
            json.dumps(_as_json(one), ensure_ascii=False, default=str)
            if isinstance(one, list | dict)
            else as_text(one)
            for one in row
        ]
        broken = any("\r" in cell for cell in cells)
        (quoting if broken else writer).writerow([*cells, label, *shares.values()])
    return text.getvalue()


def _as_json(value: Any) -> Any:
    """A value that JSON can hold: it has no NaN and no infinity, which Parquet has."""
    if isinstance(value, list):
        return [_as_json(one) for one in value]
    if isinstance(value, dict):
        return {name: _as_json(one) for name, one in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value
