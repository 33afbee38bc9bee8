"""Keep a native library's chatter off the terminal: it writes to the file descriptors, past Python's streams."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def silenced(*descriptors: int, into: int | None = None) -> Iterator[None]:
    """Send these descriptors (1 stdout, 2 stderr) to nowhere, or to the descriptor `into`, for the length of the
    block; exceptions come through."""
    if not descriptors:
        yield
        return
    sys.stdout.flush()
    sys.stderr.flush()
    saved = [os.dup(descriptor) for descriptor in descriptors]
    nowhere = os.open(os.devnull, os.O_WRONLY)
    try:
        for descriptor in descriptors:
            os.dup2(nowhere if into is None else into, descriptor)
        yield
    finally:
        for descriptor, original in zip(descriptors, saved, strict=True):
            os.dup2(original, descriptor)
            os.close(original)
        os.close(nowhere)
