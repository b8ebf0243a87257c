"""The files of an evaluation: the scores, and what was predicted for each text.

Shapes: n examples, C labels of the model.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from masktuning.config.files import write, write_json
from masktuning.evaluation.aggregate import EVALUATION_RESULTS
from masktuning.evaluation.metrics import probabilities
from masktuning.evaluation.scoring import Scored

_TEXTS = ("text", "text_pair")
_DIGITS = 6  # of the probabilities


def write_results(folder: Path, measured: list[Scored]) -> None:
    """Writes results.json, and what was predicted for each set as predictions_<set>.jsonl."""
    metrics: dict[str, float] = {}
    for one in measured:
        metrics |= one.result.as_metrics()
    write_json(folder / EVALUATION_RESULTS, metrics)
    for one in measured:
        lines = [json.dumps(row, ensure_ascii=False) for row in prediction_rows(one)]
        write(folder / f"predictions_{one.result.name}.jsonl", "\n".join(lines) + "\n")


def prediction_rows(scored: Scored) -> Iterator[dict[str, Any]]:
    """One mapping for each text of a set, in the order of the set.

    `label` and `prediction` are label names of the set. `probabilities` has the model's label
    names, which are more where the set has fewer labels than the model.
    """
    shares_nC = probabilities(scored.logits)
    columns = scored.texts.texts
    for i, gold in enumerate(scored.texts.labels):
        texts = {name: column[i] for name, column in zip(_TEXTS, columns, strict=False)}
        shares = [round(float(share), _DIGITS) for share in shares_nC[i]]
        yield {
            "example_id": i,
            **texts,
            "label": scored.labels[gold],
            "prediction": scored.labels[scored.predictions[i]],
            "probabilities": dict(zip(scored.model_labels, shares, strict=True)),
        }
