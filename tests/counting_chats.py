"""Conversations of nano in eager PyTorch that count what they are fed and keep the logits they gave."""

from __future__ import annotations

import numpy as np

from lfm2_export.chat.conversation import Conversation
from lfm2_export.errors import UsageError
from lfm2_export.model.decoder import Decoder
from lfm2_export.runtimes.eager import EagerSession

WINDOW = 192
SYSTEM = "You are a helpful assistant."


class Counting(EagerSession):
    """Counts the tokens it is fed, keeps the logits it gave."""

    def __init__(self, decoder: Decoder, window: int) -> None:
        super().__init__(decoder, window)
        self.fed = 0
        self.logits: list[np.ndarray] = []

    def prefill(self, tokens, pad_to=None):
        logits = super().prefill(tokens, pad_to)
        self.fed += len(tokens)
        self.logits.append(logits)
        return logits


class Resident(Counting):
    """As a form that hides its state looks."""

    has_state = False

    def state(self):
        raise UsageError("hidden")

    def restore(self, snapshot):
        raise UsageError("hidden")


def say(chat: Conversation, text: str, limit: int = 24) -> tuple[str, list[np.ndarray]]:
    """The reply and the logits behind each of its tokens."""
    chat.session.logits.clear()
    reply = "".join(chat.reply(text, limit))
    return reply, list(chat.session.logits)


def assert_same(actual: tuple[str, list[np.ndarray]], expected: tuple[str, list[np.ndarray]]) -> None:
    assert actual[0] == expected[0]
    assert len(actual[1]) == len(expected[1]) > 1
    for ours, theirs in zip(actual[1], expected[1], strict=True):
        np.testing.assert_array_equal(ours, theirs)
