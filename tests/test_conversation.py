"""A chat's state: what is new is fed and nothing else; turns taken back, branches and files go on to the bit."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from eager_artifacts import artifact_of, tiny_session
from hypothesis import given, settings
from hypothesis import strategies as st

from lfm2_export.artifact.folder import Artifact
from lfm2_export.chat.conversation import Conversation
from lfm2_export.chat.incremental_snapshot import IncrementalSnapshot
from lfm2_export.chat.sampling import MinPSampler
from lfm2_export.checkpoint.source import Checkpoint
from lfm2_export.checkpoint.tokenizer import ChatTokenizer
from lfm2_export.errors import StateFileError, UsageError, WindowExceededError
from lfm2_export.model.decoder import Decoder
from lfm2_export.model.load import load_decoder, open_checkpoint
from lfm2_export.runtimes.eager import EagerSession

WINDOW = 192
SYSTEM = "You are a helpful assistant."


@pytest.fixture(scope="module")
def nano() -> Checkpoint:
    return open_checkpoint("nano")


@pytest.fixture(scope="module")
def decoder(nano: Checkpoint) -> Decoder:
    return load_decoder(nano)


@pytest.fixture(scope="module")
def tokenizer(nano: Checkpoint) -> ChatTokenizer:
    loaded = ChatTokenizer.load(nano.folder, nano.config)
    assert loaded is not None
    return loaded


@pytest.fixture
def chat(decoder: Decoder, tokenizer: ChatTokenizer) -> Conversation:
    return Conversation(Counting(decoder, WINDOW), tokenizer)


@pytest.fixture
def other(decoder: Decoder, tokenizer: ChatTokenizer) -> Conversation:
    """A conversation of another process: same model, nothing shared but the weights."""
    return Conversation(Counting(decoder, WINDOW), tokenizer)


@pytest.fixture(scope="module")
def artifact(nano: Checkpoint) -> Artifact:
    return artifact_of(nano.config, WINDOW)


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


def test_a_saved_conversation_goes_on_as_if_it_had_never_stopped(chat, other, artifact, tmp_path):
    chat.messages.append({"role": "system", "content": SYSTEM})
    say(chat, "My name is Anna.")
    chat.save(tmp_path / "chat.state", artifact)
    expected = say(chat, "What is my name?")
    say(other, "Something else.")
    other.resume(tmp_path / "chat.state", artifact)
    assert_same(say(other, "What is my name?"), expected)
    assert other.messages == chat.messages
    other.rewind()
    with pytest.raises(UsageError, match="no turn to take back"):
        other.rewind()


def test_a_refused_file_changes_nothing(chat, artifact, tmp_path):
    say(chat, "My name is Anna.")
    chat.branch("here")
    expected = say(chat, "What is my name?")
    chat.switch("here")
    (tmp_path / "bad").write_bytes(b"nothing")
    with pytest.raises(StateFileError):
        chat.resume(tmp_path / "bad", artifact)
    assert_same(say(chat, "What is my name?"), expected)


def test_a_prefix_cache_is_made_once_and_used_ever_after(chat, other, artifact, tmp_path):
    path = tmp_path / "prefix.state"
    for conversation in (chat, other):
        conversation.messages.append({"role": "system", "content": SYSTEM})
        conversation.cache_prefix(path, artifact)
    made = path.read_bytes()
    prefix = chat.session.position
    assert (chat.session.fed, other.session.fed) == (prefix, 0)
    expected = say(chat, "What color is the sky?")
    assert_same(say(other, "What color is the sky?"), expected)
    assert other.speed.cached_tokens == prefix
    assert f"({prefix} more from cache)" in other.speed.line()
    other.reset()
    assert_same(say(other, "What color is the sky?"), expected)
    assert other.speed.cached_tokens == prefix
    other.rewind()
    assert_same(say(other, "What color is the sky?"), expected)
    assert path.read_bytes() == made


def test_a_cache_of_another_prompt_is_refused(chat, other, artifact, tmp_path):
    path = tmp_path / "prefix.state"
    with pytest.raises(UsageError, match="--system"):
        chat.cache_prefix(path, artifact)
    chat.messages.append({"role": "system", "content": SYSTEM})
    chat.cache_prefix(path, artifact)
    other.messages.append({"role": "system", "content": SYSTEM + " Be brief."})
    with pytest.raises(StateFileError, match="another system prompt"):
        other.cache_prefix(path, artifact)
    other.messages = list(chat.messages)
    other.tools = [{"name": "clock"}]
    with pytest.raises(StateFileError, match="another system prompt"):
        other.cache_prefix(path, artifact)


def test_a_system_prompt_changed_later_is_not_answered_from_the_cache(chat, other, artifact, tmp_path):
    chat.messages.append({"role": "system", "content": SYSTEM})
    chat.cache_prefix(tmp_path / "prefix.state", artifact)
    for conversation in (chat, other):
        conversation.messages = [{"role": "system", "content": "Your name is Ben."}]
    assert_same(say(chat, "What color is the sky?"), say(other, "What color is the sky?"))
    assert chat.speed.cached_tokens == 0


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


def test_sampling_does_not_depend_on_what_was_cached(chat, other, artifact, tmp_path):
    replies = []
    for conversation in (chat, other):
        conversation.messages.append({"role": "system", "content": SYSTEM})
        conversation.sampler = MinPSampler(temperature=1.5, min_p=0.001, repetition_penalty=2.0, seed=4)
    chat.cache_prefix(tmp_path / "prefix.state", artifact)
    replies = [say(conversation, "What color is the sky?")[0] for conversation in (chat, other)]
    assert replies[0] == replies[1]


def test_a_resident_form_says_what_to_do(decoder, tokenizer, artifact, tmp_path):
    chat = Conversation(Resident(decoder, WINDOW), tokenizer)
    chat.messages.append({"role": "system", "content": SYSTEM})
    path = tmp_path / "x.state"
    actions = [
        chat.rewind,
        lambda: chat.branch("a"),
        lambda: chat.switch("a"),
        lambda: chat.save(path, artifact),
        lambda: chat.resume(path, artifact),
        lambda: chat.cache_prefix(path, artifact),
    ]
    for action in actions:
        with pytest.raises(UsageError, match="--form explicit"):
            action()
    assert list(tmp_path.iterdir()) == []


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
