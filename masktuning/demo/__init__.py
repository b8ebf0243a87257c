"""The embedded default: a small pretrained checkpoint, a data generator, and how both were made."""

from pathlib import Path

EMBEDDED = Path(__file__).parent / "checkpoint"
"""A pretrained masked LM and its tokenizer, which plain transformers loads."""
