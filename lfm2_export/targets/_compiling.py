"""The manners of a lowering: quiet, and not slowed by Python's memory management."""

from __future__ import annotations

import gc
import logging
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

from lfm2_export.files import scratch_folder


@contextmanager
def no_collection() -> Iterator[None]:
    """Lowering makes millions of small objects and drops few: searching them for cycles took half of its time."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


@contextmanager
def swept_temporaries() -> Iterator[None]:
    """Put the compilers' temporary files into a hidden folder of ours, swept by the next run after a kill."""
    before = tempfile.tempdir
    with scratch_folder() as folder:
        tempfile.tempdir = str(folder)
        try:
            yield
        finally:
            tempfile.tempdir = before


@contextmanager
def quiet() -> Iterator[None]:
    """The compilers log their passes as warnings, some of them setting levels of their own; errors come through."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
