"""Cells made in this process, one after the other."""

from __future__ import annotations

import socket
from collections.abc import Generator, Iterable

from lfm2_export.matrix.make import Job, make
from lfm2_export.matrix.outcome import Outcome
from lfm2_export.progress import Progress


def made_here(work: Iterable[Job | Outcome], progress: Progress) -> Generator[Outcome, None, None]:
    """Yield what is settled already as it is, and of every job what became of it."""
    for each in work:
        if isinstance(each, Outcome):
            yield each
        else:
            yield make(each, _InCell(each.cell.name, progress), socket.gethostname())


class _InCell(Progress):
    """Passes on what a cell says of itself, with its name."""

    def __init__(self, cell: str, progress: Progress) -> None:
        self._cell = cell
        self._progress = progress

    def __call__(self, message: str, work: float = 0.0) -> None:
        self._progress(f"{self._cell}: {message}", work)

    def expect(self, work: float) -> None:
        self._progress.expect(work)

    def advance(self, work: float) -> None:
        self._progress.advance(work)
