"""Lets the benchmarks import what they share (row_work, timing)."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
