"""What shows while work goes on: one line at a time of what is being done now."""

from __future__ import annotations

from collections.abc import Callable

Progress = Callable[[str], None]  # called with what begins now, in a few words; returns at once


def silent(message: str) -> None:
    """Show nothing."""
