"""From files to batches: reading, labels, tokenisation, padding."""
