"""The embedded default of `python -m masktuning.train`: generated data and a small model."""
