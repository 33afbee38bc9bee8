"""The signals that end a program: held back over steps that belong together, or turned into an orderly way out.

SIGTERM is what a cancelled CI job, `docker stop` and systemd send, SIGHUP what a closed terminal does. Left alone they
end Python on the spot, past every clean-up.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

_ENDING = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]
_UNTOUCHED = (signal.SIG_DFL, signal.default_int_handler)


class Stopped(SystemExit):
    """A signal asks the program to end; `status` is the exit code that a shell would give for it."""

    def __init__(self, number: int) -> None:
        self.status = 128 + number
        self.name = signal.Signals(number).name
        super().__init__(self.status)


@contextmanager
def orderly_end() -> Iterator[None]:
    """Ctrl-C, SIGTERM and SIGHUP raise Stopped in the block; what is ignored or has a handler keeps that."""

    def leave(number: int, _: FrameType | None) -> None:
        raise Stopped(number)

    with _handled([each for each in _ENDING if signal.getsignal(each) in _UNTOUCHED], leave):
        yield


@contextmanager
def uninterrupted() -> Iterator[None]:
    """Ctrl-C, SIGTERM and SIGHUP wait until the block ends; it is short. Only the main thread is ever interrupted."""
    arrived: list[int] = []
    waiting = [each for each in _ENDING if signal.getsignal(each) not in (None, signal.SIG_IGN)]
    try:
        with _handled(waiting, lambda number, _: arrived.append(number)):
            yield
    finally:
        for number in dict.fromkeys(arrived):
            signal.raise_signal(number)


@contextmanager
def _handled(numbers: list[signal.Signals], handler: Any) -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():  # only that one may, and only that one is interrupted
        yield
        return
    before = {number: signal.signal(number, handler) for number in numbers}
    try:
        yield
    finally:
        for number, former in before.items():
            signal.signal(number, former)
