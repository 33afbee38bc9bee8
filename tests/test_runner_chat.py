"""`lfm2_runner chat` beside Python's conversation: the same replies, drafts and state files."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path

import pytest
from runner_chat import SAID, SYSTEM, python_conversation, python_talk, talk
from runner_program import copy, edit_manifest, need_runner

from lfm2_export.artifact.folder import Artifact
from lfm2_export.chat.drafts import Lookup
from lfm2_export.chat.saved_state import load_state

LIMIT = 12  # tokens of a reply
ACCEPTED = re.compile(r"\(accepted (\d+) of (\d+) drafted\)$", re.M)
TOOLS = [{"name": "z", "about": "é\x7f\n", "numbers": [1, -2.5, True, None, {}], "b": {}}]  # keys not in order


@pytest.mark.parametrize("draft", [None, "lookup", "itself"])
def test_a_chat_says_what_pythons_says(talking_pte: Artifact, draft: str | None) -> None:
    options = ["--draft", talking_pte.folder if draft == "itself" else draft] if draft else []
    told = talk(talking_pte.folder, SAID[:3], "--max-new", LIMIT, "--system", SYSTEM, *options)
    assert told.code == 0
    assert told.out == "".join(python_talk(talking_pte, SAID[:3], LIMIT, SYSTEM))
    assert "more from cache" in told.err.splitlines()[1]  # only what is new was fed
    if draft == "itself":
        assert sum(int(right) for right, _ in ACCEPTED.findall(told.err)) > 0


def test_what_was_accepted_is_shown_as_python_counts_it(talking_pte: Artifact) -> None:
    conversation = python_conversation(talking_pte)
    conversation.source = Lookup()
    expected = []
    for text in SAID[:3]:
        "".join(conversation.reply(text.strip(), 40))
        if conversation.speed.drafted_tokens:
            expected.append((str(conversation.speed.accepted_tokens), str(conversation.speed.drafted_tokens)))
    told = talk(talking_pte.folder, SAID[:3], "--max-new", 40, "--draft", "lookup")
    assert ACCEPTED.findall(told.err) == expected


def test_lookup_goes_on_behind_a_difference_as_python_does(talking_pte: Artifact) -> None:
    """The answer differs in a name from what it copies."""
    said = ["Hello, I am Anna", "Hello, I am Ben"]
    conversation = python_conversation(talking_pte)
    conversation.source = Lookup()
    expected = []
    for text in said:
        "".join(conversation.reply(text, LIMIT))
        expected.append((str(conversation.speed.accepted_tokens), str(conversation.speed.drafted_tokens)))
    told = talk(talking_pte.folder, said, "--max-new", LIMIT, "--draft", "lookup")
    assert ACCEPTED.findall(told.err) == expected


def test_a_smaller_model_of_another_vocabulary_or_without_drafts_is_refused(talking_pte, tmp_path):
    other = copy(talking_pte.folder, tmp_path / "other")
    files = {name: entry.model_dump() for name, entry in talking_pte.manifest.files.items()}
    edit_manifest(other, files=files | {"tokenizer.json": files["tokenizer.json"] | {"sha256": "0" * 64}})
    plain = copy(talking_pte.folder, tmp_path / "plain")
    methods = json.loads((plain / "manifest.json").read_text())["methods"]
    edit_manifest(plain, methods=methods[:1])
    for draft, expected in (
        (other, f"--draft {other}: another vocabulary than {talking_pte.folder} has"),
        (plain, f"--draft {plain}: cannot take back what it guesses; export it with options.speculation"),
        ("looking", "--draft looking: expected lookup, or an artifact"),
    ):
        assert expected in talk(talking_pte.folder, [], "--draft", draft).refused()
    assert f"{plain} verifies no drafts; export it" in talk(plain, [], "--draft", "lookup").refused()


def test_a_full_window_forgets_the_oldest_turns_as_python_does(talking_pte):
    said = [*SAID, *SAID, *SAID]  # three windows
    expected = "".join(python_talk(talking_pte, said, LIMIT, SYSTEM, "forget"))
    for draft in ([], ["--draft", talking_pte.folder]):  # which has to go back with it
        told = talk(talking_pte.folder, said, "--max-new", LIMIT, "--system", SYSTEM, "--on-full", "forget", *draft)
        assert told.code == 0
        assert told.out == expected
        assert told.err.count("the window was full: forgot the oldest") >= 2


def test_a_full_window_stops_and_reset_starts_over(talking_pte):
    told = talk(talking_pte.folder, ["Hello", SAID[0] * 60, "Hello", "/reset", "/what", "", "Hello", "/exit", "Hello"])
    hello = python_talk(talking_pte, ["Hello", "Hello"], 256)
    assert told.out == "".join([*hello, hello[0]])
    assert told.err.count("the conversation is full: ") == 1
    assert told.err.count("no command /what") == 1


def test_what_is_no_text_is_refused_and_the_chat_goes_on(talking_pte):
    line = [need_runner(), "chat", talking_pte.folder, "--greedy"]
    done = subprocess.run(line, input=b"\xff\xfe\nHello\n", capture_output=True, timeout=60, check=False)
    assert done.returncode == 0
    assert done.stdout.decode() == "".join(python_talk(talking_pte, ["Hello"], 256))
    assert done.stderr.startswith(b"not UTF-8 text\n")


class TestState:
    def test_the_file_is_pythons_to_the_byte(self, talking_pte: Artifact, tmp_path: Path) -> None:
        conversation = python_conversation(talking_pte, SYSTEM)
        for text in (SAID[3], SAID[0]):
            "".join(conversation.reply(text, LIMIT))
        conversation.save(tmp_path / "python", talking_pte)
        options = ["--max-new", LIMIT, "--system", SYSTEM, "--save-state", tmp_path / "runner"]
        assert talk(talking_pte.folder, [SAID[3], SAID[0]], *options).code == 0
        assert (tmp_path / "runner").read_bytes() == (tmp_path / "python").read_bytes()

    def test_either_goes_on_from_the_others(self, talking_pte: Artifact, tmp_path: Path) -> None:
        expected = python_talk(talking_pte, SAID[:3], LIMIT, SYSTEM)
        options = ["--max-new", LIMIT]
        first = talk(talking_pte.folder, SAID[:2], *options, "--system", SYSTEM, "--save-state", tmp_path / "runner")
        assert first.out == "".join(expected[:2])
        conversation = python_conversation(talking_pte)
        conversation.resume(tmp_path / "runner", talking_pte)
        assert "".join(conversation.reply(SAID[2].strip(), LIMIT)) + "\n" == expected[2]
        for draft in ([], ["--draft", talking_pte.folder]):  # which has seen nothing of it
            told = talk(talking_pte.folder, SAID[2:3], *options, "--load-state", tmp_path / "runner", *draft)
            assert told.out == expected[2]
            assert "more from cache" in told.err

    def test_tools_and_what_was_said_come_out_as_they_went_in(self, talking_pte: Artifact, tmp_path: Path) -> None:
        conversation = python_conversation(talking_pte, SYSTEM)
        conversation.tools = TOOLS
        with_tools = "".join(conversation.reply("Hello", LIMIT)) + "\n"
        conversation.save(tmp_path / "x", talking_pte)
        assert talk(talking_pte.folder, [], "--load-state", tmp_path / "x", "--save-state", tmp_path / "y").code == 0
        assert (tmp_path / "y").read_bytes() == (tmp_path / "x").read_bytes()
        told = talk(talking_pte.folder, ["/reset", "Hello"], "--max-new", LIMIT, "--load-state", tmp_path / "x")
        assert told.out == with_tools  # the tools stay, as the system prompt does

    def test_save_and_load_between_turns(self, talking_pte: Artifact, tmp_path: Path) -> None:
        save, load = f"/save {tmp_path}/x", f"/load {tmp_path}/x"
        lines = [SAID[1], save, SAID[0], load, SAID[2], save, "/save", f"/load {tmp_path}/none"]
        told = talk(talking_pte.folder, lines, "--max-new", LIMIT)
        anna, name = python_talk(talking_pte, [SAID[1], SAID[2]], LIMIT)
        assert told.code == 0
        assert told.out.startswith(anna)
        assert told.out.endswith(name)
        position = len(load_state(tmp_path / "x", talking_pte).tokens)
        assert f"saved {tmp_path}/x; {position} of 128 tokens" in told.err
        assert f"loaded {tmp_path}/x; {position} of 128 tokens" in told.err
        assert f"{tmp_path}/x: exists already; --force replaces it" in told.err
        assert "no command /save;" in told.err
        assert f"{tmp_path}/none: No such file" in told.err

    def test_what_cannot_be_is_said_before_the_talk(self, talking_pte: Artifact, tmp_path: Path) -> None:
        (tmp_path / "x").write_text("precious")
        for options, expected in (
            (["--save-state", tmp_path / "x"], "exists already; --force replaces it"),
            (["--load-state", tmp_path / "x", "--system", SYSTEM], "--load-state brings its own system prompt"),
            (["--load-state", tmp_path / "x"], "its header is cut off"),
        ):
            assert expected in talk(talking_pte.folder, SAID[:1], *options).refused()
        assert (tmp_path / "x").read_text() == "precious"
