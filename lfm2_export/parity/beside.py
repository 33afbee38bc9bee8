"""fp32's reading of all text, on a core that other work leaves idle.

Lowering a model is Python on one core, and fp32's own pass over 2,000 tokens took a seventh of a proof. An export
begins it while it lowers, a proof by itself while it lowers the other form.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Hashable
from concurrent.futures import Future, ThreadPoolExecutor
from threading import Event, Lock
from types import TracebackType
from typing import Self

import torch

from lfm2_export.evaluate.exact import Exact

Read = Callable[[Callable[[], None]], list[Exact]]  # calls what it is given after each layer
# seconds after which one thread lets another run Python: ten times as often as usual, so that neither waits
_TURN = 5e-4


class Beside:
    """A reading that goes on in a thread of its own, on one core until somebody waits for it.

    Where PyTorch has only one thread, it is not begun before somebody waits. `asked` is what is read.
    """

    def __init__(self, read: Read, asked: Hashable = None) -> None:
        self._read, self.asked = read, asked
        self._threads = torch.get_num_threads()
        self._layers, self._counting = 0, Lock()
        self._awaited, self._abandoned = Event(), Event()
        self._advance: Callable[[], None] = lambda: None
        self._pool = ThreadPoolExecutor(1)
        self._future: Future[list[Exact]] | None = None

    def __enter__(self) -> Self:
        if self._threads > 1:
            torch.set_num_threads(1)  # of this thread: two that want both cores wait for each other
            self._turn = sys.getswitchinterval()
            sys.setswitchinterval(_TURN)
            self._future = self._pool.submit(self._run)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        """Wait for the layer under way, and abandon the others."""
        self.abandon()

    def abandon(self) -> None:
        """End the reading after the layer under way."""
        self._abandoned.set()
        self._pool.shutdown()
        self._alone()

    def reclaim(self) -> None:
        """Give both cores to this thread again, if the reading has ended."""
        if self._future is not None and self._future.done():
            self._alone()

    def result(self, advance: Callable[[], None]) -> list[Exact]:
        """Return what was read, once it is; `advance` is called for each layer."""
        if self._future is None:
            return self._read(advance)
        with self._counting:
            for _ in range(self._layers):
                advance()
            self._advance = advance
            self._awaited.set()
        found = self._future.result()
        self._alone()
        return found

    def _alone(self) -> None:
        torch.set_num_threads(self._threads)
        if self._future is not None:
            sys.setswitchinterval(self._turn)

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
