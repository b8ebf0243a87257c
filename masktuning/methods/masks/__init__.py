"""Which tokens of a text are masked, where that follows from a model's own predictions."""
