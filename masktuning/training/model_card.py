"""The model card: README.md of a run folder."""

from __future__ import annotations

from pathlib import Path
from string import Template
from typing import Any

from masktuning.evaluation.metrics import SetResult
from masktuning.evaluation.tables import markdown_table

_CARD = Path(__file__).parent / "model_card.md"


def model_card(results: list[SetResult], facts: dict[str, Any]) -> str:
    """README.md of a run folder: how the model was made and how it did."""
    template = Template(_CARD.read_text(encoding="utf-8"))
    labels = "\n".join(f"- {i}: {name}" for i, name in enumerate(facts["labels"]))
    return template.substitute({**facts, "labels": labels, "results": markdown_table(results)})
