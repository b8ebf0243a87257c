"""Predictions of a classifier, their scores, and tables of the scores."""
