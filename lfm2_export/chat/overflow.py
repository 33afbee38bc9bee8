"""What a chat keeps when its window is full: the system prompt whole, and the latest turns."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from lfm2_export.chat.prompt import Message

OnFull = Literal["stop", "forget"]  # refuse the turn that does not fit, or forget the oldest ones


def reserved(window: int, limit: int) -> int:
    """Return the tokens of a window to leave for a reply of at most `limit`: a quarter will do for the longest."""
    return min(limit, window // 4)


def kept(window: int) -> int:
    """Return the tokens that stay once turns are forgotten: half, so that most turns after it feed only what is new."""
    return window // 2


def without_oldest_turn(messages: Sequence[Message]) -> list[Message] | None:
    """Return the messages but for the first user's and what answered it; None where only the latest turn is left."""
    begins = [at for at, message in enumerate(messages) if message["role"] == "user"]
    if len(begins) < 2:
        return None
    return [*(message for message in messages[: begins[0]] if message["role"] == "system"), *messages[begins[1] :]]
