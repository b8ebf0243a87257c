"""Pretraining of a small masked LM on plain text; the embedded checkpoint was made with it."""
