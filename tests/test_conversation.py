"""A chat's state: what is new is fed and nothing else; turns taken back and branches go on to the bit."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from counting_chats import WINDOW, Counting, Resident, assert_same, say
from eager_artifacts import tiny_session
from hypothesis import given, settings
from hypothesis import strategies as st

from lfm2_export.chat.conversation import Conversation
from lfm2_export.chat.incremental_snapshot import IncrementalSnapshot
from lfm2_export.checkpoint.tokenizer import ChatTokenizer
from lfm2_export.errors import UsageError, WindowExceededError
from lfm2_export.model.decoder import Decoder


@pytest.fixture
def chat(decoder: Decoder, tokenizer: ChatTokenizer) -> Conversation:
    return Conversation(Counting(decoder, WINDOW), tokenizer)


@pytest.mark.parametrize("session", [Counting, Resident])
def test_a_second_turn_feeds_only_what_is_new(session, decoder, tokenizer):
    chat = Conversation(session(decoder, WINDOW), tokenizer)
    assert say(chat, "My name is Anna.")
    before = chat.session.fed
    assert chat.session.position == before
    assert "Anna" in say(chat, "What is my name?")[0]
    assert chat.speed.cached_tokens == before
    assert chat.session.fed == chat.session.position


def test_rewind_is_exact_and_repeats_to_the_start(chat):
    first = say(chat, "My name is Anna.")
    messages, state = list(chat.messages), chat.session.state()
    second = say(chat, "What is my name?")
    say(chat, "Thanks!")
    chat.rewind()
    chat.rewind()
    assert chat.messages == messages
    assert chat.session.position == state.position
    for name, tensor in chat.session.state().tensors.items():
        np.testing.assert_array_equal(tensor, state.tensors[name])
    assert_same(say(chat, "What is my name?"), second)
    chat.rewind()
    chat.rewind()
    assert chat.messages == []
    assert_same(say(chat, "My name is Anna."), first)
    chat.rewind()
    with pytest.raises(UsageError, match="no turn to take back"):
        chat.rewind()


def test_branches_are_returned_to_exactly_in_any_order(chat):
    say(chat, "My name is Anna.")
    chat.branch("A")
    in_a = say(chat, "What is my name?")
    chat.branch("A2")
    chat.reset()
    say(chat, "My name is Ben.")
    chat.branch("B")
    in_b = say(chat, "What is my name?")
    assert in_a[0] != in_b[0]
    for name, expected in (("A", in_a), ("B", in_b), ("A", in_a), ("A", in_a), ("B", in_b)):
        chat.switch(name)
        assert_same(say(chat, "What is my name?"), expected)
    chat.switch("A2")
    chat.rewind()
    assert_same(say(chat, "What is my name?"), in_a)
    assert chat.branches == ["A", "A2", "B"]
    with pytest.raises(UsageError, match="no branch 'C'; known: A, A2, B"):
        chat.switch("C")


@pytest.mark.parametrize("session", [Counting, Resident])
def test_a_turn_refused_or_abandoned_has_not_taken_place(session, decoder, tokenizer):
    chat = Conversation(session(decoder, WINDOW), tokenizer)
    say(chat, "My name is Anna.")
    messages = list(chat.messages)
    expected, *_ = say(chat, "What is my name?")
    with pytest.raises(WindowExceededError):
        say(chat, "word " * WINDOW)
    reply = chat.reply("Thanks!", 24)
    next(reply)
    reply.close()
    assert len(chat.messages) == len(messages) + 2
    if chat.session.has_state:
        assert chat.session.position == len(chat._fed.tokens)
        chat.rewind()
        assert chat.messages == messages
    else:
        chat.messages = messages
    assert say(chat, "What is my name?")[0] == expected


def test_a_reply_spelled_otherwise_costs_only_its_own_turn(chat):
    say(chat, "My name is Anna.")
    fed = chat.session.position
    say(chat, "What is my name?")
    chat.messages[-1] = {"role": "assistant", "content": "It is Anna."}  # as if its tokens spelled the text otherwise
    assert say(chat, "Thanks!")[0]
    assert chat.speed.cached_tokens == fed
    chat.rewind()
    assert chat.messages[-1]["content"] == "It is Anna."


@settings(deadline=None, max_examples=25)
@given(st.lists(st.integers(1, 6), min_size=1, max_size=6), st.data())
def test_snapshots_share_what_they_have_in_common_and_restore_exactly(sizes, data):
    session = tiny_session(window=48)
    snapshots: list[IncrementalSnapshot] = []
    parent = None
    kept = []
    for size in sizes:
        session.prefill(data.draw(st.lists(st.integers(0, 900), min_size=size, max_size=size)))
        kept.append(session.state())
        parent = IncrementalSnapshot.after(parent, kept[-1])
        snapshots.append(parent)
    for snapshot, moment in zip(kept, snapshots, strict=True):
        assert moment.snapshot().position == snapshot.position
        for name, tensor in snapshot.tensors.items():
            np.testing.assert_array_equal(moment.snapshot().tensors[name], tensor)
    columns = sum(moment.tensors["key.1"].shape[2] for moment in snapshots)
    assert columns == session.position


def test_nothing_of_a_place_changes_under_it(chat, tmp_path: Path):
    say(chat, "My name is Anna.")
    chat.branch("a")
    frozen = chat._branches["a"].snapshot.snapshot()
    for text in ("What is my name?", "Thanks!"):
        say(chat, text)
    for name, tensor in chat._branches["a"].snapshot.snapshot().tensors.items():
        np.testing.assert_array_equal(tensor, frozen.tensors[name])
