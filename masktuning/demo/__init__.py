"""The demo: a small pretrained checkpoint, how it was made, and the comparison of methods on it."""

from pathlib import Path

EMBEDDED = Path(__file__).parent / "checkpoint"
"""Folder of a pretrained masked LM and its tokenizer, which transformers alone can load."""
