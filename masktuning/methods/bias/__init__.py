"""Bias-only models: what a classifier that sees only a shortcut predicts for the training set."""
