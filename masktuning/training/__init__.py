"""One run: its job, its trainer, its folder."""
