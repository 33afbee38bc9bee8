"""Android's chat held against Python's: the same words, window, drafts and state files, on the real `.pte`."""

from __future__ import annotations

import android_bundle
import numpy as np
import pytest
from android_cases import CONVERSATIONS, EACH_MODEL, LIMIT, TOOL
from android_tools import Refused
from stock_runner_process import StockRunner

from lfm2_export import runtimes
from lfm2_export.chat.conversation import Conversation
from lfm2_export.chat.drafts import Lookup

pytestmark = pytest.mark.slow  # Kotlin is compiled first


@EACH_MODEL
def test_explicit_chat_is_pythons(source, bundled, kotlin, runtime, tmp_path):
    artifact, files, tokenizer = bundled("explicit", source)
    folder = android_bundle.write_folder(files, tmp_path / "bundle")
    job = {"folder": str(folder), "shared": str(tmp_path), "limit": LIMIT}
    found = kotlin("chat", runtime(artifact), conversations=CONVERSATIONS * 2, **job)
    assert found[: len(CONVERSATIONS)] == found[len(CONVERSATIONS) :]  # a new conversation is the first one again
    for turns, replies in zip(CONVERSATIONS, found, strict=False):
        session = runtimes.find("executorch").open_session(artifact.folder, artifact.manifest)
        conversation = Conversation(session, tokenizer)
        for turn, reply in zip(turns, replies, strict=True):
            assert reply["text"] == "".join(conversation.reply(turn, LIMIT))
            assert reply["fed"] == conversation.speed.prompt_tokens


@EACH_MODEL
def test_explicit_chat_says_the_same_with_drafts(source, bundled, kotlin, runtime, tmp_path):
    artifact, files, tokenizer = bundled("explicit", source)
    folder = android_bundle.write_folder(files, tmp_path / "bundle")
    turns = ["My name is Anna.", *["What is my name?"] * 3]
    job = {"folder": str(folder), "shared": str(tmp_path), "limit": LIMIT, "drafting": True}
    (found,) = kotlin("chat", runtime(artifact), conversations=[turns], **job)
    session = runtimes.find("executorch").open_session(artifact.folder, artifact.manifest)
    for source in (None, Lookup()):
        conversation = Conversation(session, tokenizer, source=source)
        for turn, reply in zip(turns, found, strict=True):
            assert reply["text"] == "".join(conversation.reply(turn, LIMIT))
            if source is not None:
                speed = conversation.speed
                assert (reply["drafted"], reply["accepted"]) == (speed.drafted_tokens, speed.accepted_tokens)
                assert reply["fed"] == speed.prompt_tokens
    assert found[-1]["accepted"] > 0


def test_a_full_window_costs_the_turns_that_it_costs_in_python(bundled, kotlin, runtime, tmp_path):
    artifact, files, tokenizer = bundled("explicit")
    folder = android_bundle.write_folder(files, tmp_path / "bundle")
    # no turn twice: Python would go back to where the same was said before
    turns = [f"{number}. " + "My name is Anna. " * 6 + "What is my name?" for number in range(14)]
    job = {"folder": str(folder), "shared": str(tmp_path), "limit": LIMIT, "system": "Be brief.", "on_full": "FORGET"}
    (found,) = kotlin("chat", runtime(artifact), conversations=[turns], **job)
    session = runtimes.find("executorch").open_session(artifact.folder, artifact.manifest)
    system = {"role": "system", "content": "Be brief."}
    conversation = Conversation(session, tokenizer, [system], on_full="forget")
    fed = 0
    for turn, reply in zip(turns, found, strict=True):
        assert reply["text"] == "".join(conversation.reply(turn, LIMIT))
        speed = conversation.speed
        assert (reply["fed"], reply["forgotten"]) == (speed.prompt_tokens, speed.forgotten_turns)
        fed += reply["fed"]
    assert fed > 3 * artifact.manifest.window
    assert sum(reply["forgotten"] > 0 for reply in found) > 2


@EACH_MODEL
def test_state_files_are_pythons_to_the_byte_and_go_on(source, bundled, kotlin, runtime, tmp_path):
    artifact, files, tokenizer = bundled("explicit", source)
    folder = android_bundle.write_folder(files, tmp_path / "bundle")
    theirs, ours = tmp_path / "python.state", tmp_path / "kotlin.state"
    session = runtimes.find("executorch").open_session(artifact.folder, artifact.manifest)
    conversation = Conversation(session, tokenizer, tools=[TOOL])
    said = ["".join(conversation.reply("My name is 🙂 Anna.", LIMIT))]
    conversation.save(theirs, artifact)
    said.append("".join(conversation.reply("What is my name?", LIMIT)))
    turns = ["My name is 🙂 Anna.", {"save": str(ours)}, "Hello", {"load": str(theirs)}, "What is my name?"]
    job = {"folder": str(folder), "shared": str(tmp_path), "limit": LIMIT, "tools": [TOOL]}
    (found,) = kotlin("chat", runtime(artifact), conversations=[turns], **job)
    assert ours.read_bytes() == theirs.read_bytes()
    assert [found[0]["text"], found[-1]["text"]] == said
    assert found[-1]["fed"] == conversation.speed.prompt_tokens  # no more than what is new


def test_state_files_of_others_are_refused(bundled, make_artifact, kotlin, runtime, tmp_path):
    artifact, files, tokenizer = bundled("explicit")
    other = make_artifact("xnnpack-int4", "explicit")
    session = runtimes.find("executorch").open_session(other.folder, other.manifest)
    conversation = Conversation(session, tokenizer)
    list(conversation.reply("Hello", LIMIT))
    conversation.save(tmp_path / "other.state", other)
    folder = android_bundle.write_folder(files, tmp_path / "bundle")
    job = {"folder": str(folder), "shared": str(tmp_path), "limit": LIMIT}
    with pytest.raises(Refused, match="another model"):
        kotlin("chat", runtime(artifact), conversations=[[{"load": str(tmp_path / "other.state")}]], **job)


@EACH_MODEL
def test_resident_chat_goes_on_through_the_stock_runner(source, bundled, kotlin, tmp_path):
    """`TextLLMRunner` is what Android's LlmModule wraps. Its turns are those of the same file, fed whole each time."""
    artifact, files, tokenizer = bundled("resident", source)
    folder = android_bundle.write_folder(files, tmp_path / "bundle")
    runner = StockRunner(folder / "model.pte", folder / "tokenizer.json")
    prompts = []

    def answer(call):
        prompts.extend([call["generate"]] if "generate" in call else [])
        return runner(call)

    job = {"folder": str(folder), "shared": str(tmp_path), "limit": LIMIT}
    found = kotlin("chat", answer, conversations=CONVERSATIONS, **job)
    runner.close()
    assert sum(prompt.startswith("<|im_end|>") for prompt in prompts) >= 3  # turns that went on from the state
    for turns, replies in zip(CONVERSATIONS, found, strict=True):
        messages = []
        for turn, reply in zip(turns, replies, strict=True):
            messages.append({"role": "user", "content": turn})
            session = runtimes.find("executorch").open_session(artifact.folder, artifact.manifest)
            logits = session.prefill(tokenizer.encode(tokenizer.render(messages)))
            expected = []
            while (token := int(np.argmax(logits))) not in tokenizer.eos_ids and len(expected) < LIMIT:
                expected.append(token)
                logits = session.decode(token)
            assert reply["text"] == tokenizer.decode(expected, False)
            messages.append({"role": "assistant", "content": reply["text"]})
