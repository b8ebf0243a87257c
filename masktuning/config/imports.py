"""Imports of torch and transformers without the garbage collector, which makes them slow."""

from __future__ import annotations

import gc
import sys
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def heavy_imports() -> Iterator[None]:
    """Within it nothing is garbage-collected; what exists at its end never is.

    torch and transformers make half a million objects that live as long as the process. Python's
    collector visits them again and again while they are imported, which is a fifth of the time
    that the imports take, and once more at every full collection: Trainer starts one before its
    first step, and Python ends with several.

    A process whose caller has imported torch already is left as it is, since the caller's own
    objects may become garbage later.
    """
    if "torch" in sys.modules:
        yield
        return
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()
