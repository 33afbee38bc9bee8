"""What shows while work goes on: what is being done now and, where that is known, how far it is."""

from __future__ import annotations

from collections.abc import Callable


class Progress:
    """Told of work by those who do it. This one passes on what begins, and shows nothing of how far it is."""

    def __init__(self, show: Callable[[str], None] = lambda message: None) -> None:
        self._show = show

    def __call__(self, message: str, work: float = 0.0) -> None:
        """Take what begins now, in a few words, and how much of the expected work it is; returns at once."""
        self._show(message)

    def expect(self, work: float) -> None:
        """Take how much work begins now, in any unit; what is announced later is a part of it."""

    def advance(self, work: float) -> None:
        """Take how much of what was announced last has just been done."""


silent = Progress()
