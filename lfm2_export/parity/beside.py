"""fp32's reading of all text, on a core that the rest of a proof leaves idle.

A proof lowers the model once more, loads weights and calls the artifact: little of that uses more than one core, and
fp32's own pass over 2,000 tokens took a seventh of the whole.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from threading import Event, Lock
from types import TracebackType
from typing import Self

import torch

from lfm2_export.evaluate.exact import Exact

Read = Callable[[Callable[[], None]], list[Exact]]  # calls what it is given after each layer


class Beside:
    """A reading that goes on in a thread of its own, on one core until somebody waits for it.

    Where PyTorch has only one thread, it is not begun before somebody waits.
    """

    def __init__(self, read: Read) -> None:
        self._read = read
        self._threads = torch.get_num_threads()
        self._layers, self._counting = 0, Lock()
        self._awaited, self._abandoned = Event(), Event()
        self._advance: Callable[[], None] = lambda: None
        self._pool = ThreadPoolExecutor(1)
        self._future: Future[list[Exact]] | None = None

    def __enter__(self) -> Self:
        if self._threads > 1:
            torch.set_num_threads(1)  # of this thread: two that want both cores wait for each other
            self._future = self._pool.submit(self._run)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        """Wait for the layer under way, and abandon the others."""
        self._abandoned.set()
        self._pool.shutdown()
        torch.set_num_threads(self._threads)

    def result(self, advance: Callable[[], None]) -> list[Exact]:
        """Return what was read, once it is; `advance` is called for each layer."""
        if self._future is None:
            return self._read(advance)
        with self._counting:
            for _ in range(self._layers):
                advance()
            self._advance = advance
            self._awaited.set()
        return self._future.result()

    def _run(self) -> list[Exact]:
        torch.set_num_threads(1)  # of this thread
        return self._read(self._layer)

    def _layer(self) -> None:
        if self._abandoned.is_set():
            raise _AbandonedError
        with self._counting:
            self._layers += 1
            if self._awaited.is_set():
                torch.set_num_threads(self._threads)
                self._advance()


class _AbandonedError(Exception):
    """Nobody wants the reading any more."""
