"""From files to batches: reading, label names, tokenisation and padding."""
