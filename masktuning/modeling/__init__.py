"""One encoder under two stock heads, and how checkpoints become one."""
