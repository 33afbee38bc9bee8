"""A conversation's files: a saved one goes on to the bit, a prefix is fed once, and what is refused changes nothing."""

from __future__ import annotations

import pytest
from counting_chats import SYSTEM, WINDOW, Counting, Resident, assert_same, say
from eager_artifacts import artifact_of

from lfm2_export.artifact.folder import Artifact
from lfm2_export.chat.conversation import Conversation
from lfm2_export.chat.sampling import MinPSampler
from lfm2_export.checkpoint.source import Checkpoint
from lfm2_export.checkpoint.tokenizer import ChatTokenizer
from lfm2_export.errors import StateFileError, UsageError
from lfm2_export.model.decoder import Decoder


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
