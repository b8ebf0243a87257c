"""Predictions, scores and tables of them."""
