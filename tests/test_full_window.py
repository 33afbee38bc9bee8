"""A full window: the oldest turns are forgotten, exactly as if they had never been said, or nothing is."""

from __future__ import annotations

import numpy as np
import pytest
from counting_chats import SYSTEM, WINDOW, Counting, Resident, say

from lfm2_export.chat.conversation import Conversation
from lfm2_export.checkpoint.tokenizer import ChatTokenizer
from lfm2_export.errors import WindowExceededError
from lfm2_export.model.decoder import Decoder


@pytest.fixture
def chat(decoder: Decoder, tokenizer: ChatTokenizer) -> Conversation:
    return Conversation(Counting(decoder, WINDOW), tokenizer)


def texts(chat: Conversation) -> list[str]:
    return [message["content"] for message in chat.messages]


@pytest.mark.parametrize("session", [Counting, Resident])
def test_a_full_window_costs_the_oldest_turns_and_nothing_else(session, decoder, tokenizer):
    """Three windows long: the system prompt stays, replies are those of a chat that never knew the forgotten turns."""
    chat = Conversation(session(decoder, WINDOW), tokenizer, [{"role": "system", "content": SYSTEM}], on_full="forget")
    said = forgotten = 0
    while said < 3 * WINDOW:
        reply = say(chat, "My name is Anna." if forgotten % 2 else "What color is the sky?")
        said += chat.speed.prompt_tokens + chat.speed.new_tokens
        assert texts(chat)[0] == SYSTEM
        if chat.speed.forgotten_turns:
            forgotten += chat.speed.forgotten_turns
            fresh = Conversation(session(decoder, WINDOW), tokenizer, chat.messages[:-2])
            anew = say(fresh, texts(chat)[-2])
            assert anew[0] == reply[0]
            np.testing.assert_allclose(anew[1][-1], reply[1][-1], atol=1e-4)  # fed in other parts, perhaps
            assert chat.session.position <= WINDOW // 2 + 24
    assert forgotten >= 4


def test_a_turn_too_long_for_the_window_is_refused_and_nothing_is_forgotten_for_it(decoder, tokenizer):
    for session in (Counting, Resident):
        chat = Conversation(session(decoder, WINDOW), tokenizer, on_full="forget")
        say(chat, "My name is Anna.")
        before = list(chat.messages)
        with pytest.raises(WindowExceededError):
            say(chat, "sky " * WINDOW)
        assert chat.messages == before


def test_forgotten_turns_come_back_with_a_rewind(chat):
    chat.on_full = "forget"
    while not chat.speed.forgotten_turns:
        before = list(chat.messages)
        say(chat, "What color is the sky?")
    chat.rewind()
    assert chat.messages == before
