"""`chat`: answers, turns taken back, branches, and conversations that go on in another process."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from command import cli, code_of


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """nano as an onnx-int8 artifact."""
    output = tmp_path_factory.mktemp("chat") / "nano-onnx"
    assert code_of("export", "nano", "-r", "onnx-int8", "-o", str(output), "--window", "256", "--no-verify") == 0
    return output


def test_chat_answers_and_reports_speed(artifact):
    done = cli("chat", str(artifact), "--prompt", "What color is the sky?")
    assert done.returncode == 0
    assert done.stdout == "The sky is blue.\n"
    assert "tok/s" in done.stderr
    as_json = json.loads(cli("chat", str(artifact), "-p", "What color is the sky?", "--json").stdout)
    assert as_json["reply"] == "The sky is blue."


def test_chat_talks_over_several_turns(artifact):
    turns = "My name is Anna.\nWhat is my name?\n/reset\n/exit\n"
    done = subprocess.run(
        [sys.executable, "-m", "lfm2_export", "chat", str(artifact)],
        input=turns,
        capture_output=True,
        text=True,
        check=True,
    )
    assert "Anna" in done.stdout


def talk(artifact: Path, *lines: str, options: tuple[str, ...] = ()) -> tuple[list[str], str]:
    """A chat over a pipe: the replies, and all that was said beside them."""
    done = subprocess.run(
        [sys.executable, "-m", "lfm2_export", "chat", str(artifact), *options],
        input="\n".join(lines) + "\n",
        capture_output=True,
        text=True,
        check=True,
        timeout=300,
    )
    return [line for line in done.stdout.replace("> ", "").splitlines() if line], done.stderr


def test_chat_takes_back_a_turn_and_switches_between_branches(artifact):
    replies, beside = talk(
        artifact,
        "My name is Anna.",
        "/branch anna",
        "What is my name?",
        "/rewind",
        "What is my name?",
        "/reset",
        "My name is Ben.",
        "What is my name?",
        "/switch anna",
        "What is my name?",
    )
    assert len(replies) == 6
    assert replies[1] == replies[2] == replies[5]
    assert "Anna" in replies[1]
    assert "Ben" in replies[4]
    assert "/switch anna returns to it" in beside
    assert "took back the last turn" in beside


def test_chat_saves_and_loads_between_turns(artifact, tmp_path):
    path = tmp_path / "my chat.state"
    replies, beside = talk(
        artifact, "My name is Anna.", f"/save {path}", "/reset", f"/load {path}", "What is my name?", f"/save {path}"
    )
    assert "Anna" in replies[-1]
    assert f"saved {path}" in beside
    assert f"loaded {path}" in beside
    assert "exists already" in beside
    assert [file.name for file in tmp_path.iterdir()] == ["my chat.state"]


def test_what_chat_does_not_understand_is_not_sent_to_the_model(artifact, tmp_path):
    wrong = ("/nope", "/save", "/rewind now", "/rewind", "/switch x", f"/load {tmp_path / 'none'}", "/help")
    replies, beside = talk(artifact, *wrong)
    assert replies == []
    assert "Traceback" not in beside
    for expected in ("no command /nope", "say /save FILE", "no turn to take back", "no branch 'x'", "no such file"):
        assert expected in beside
    for command in ("/save FILE", "/load FILE", "/rewind", "/branch NAME", "/switch NAME", "/reset", "/exit"):
        assert command in beside


def test_chat_goes_on_in_another_process(artifact, tmp_path, capsys):
    first, second, bad = (str(tmp_path / name) for name in ("1.state", "2.state", "bad.state"))
    assert code_of("chat", str(artifact), "-p", "My name is Anna.", "--save-state", first) == 0
    done = cli("chat", str(artifact), "-p", "What is my name?", "--load-state", first, "--save-state", second)
    assert "Anna" in done.stdout
    assert "more from cache" in done.stderr
    before = Path(first).read_bytes()
    Path(bad).write_bytes(before[:-3])
    refused = [
        ("--save-state", first),
        ("--save-state", str(tmp_path / "no" / "where")),
        ("--load-state", str(tmp_path / "none")),
        ("--load-state", bad),
        ("--load-state", first, "--system", "Be brief."),
        ("--prefix-cache", second),
    ]
    capsys.readouterr()
    for options in refused:
        assert code_of("chat", str(artifact), "-p", "hello", *options) == 2
        captured = capsys.readouterr()
        assert captured.err.startswith("error: ")
        assert captured.err.count("\n") == 1
        assert captured.out == ""
    assert Path(first).read_bytes() == before
    assert code_of("chat", str(artifact), "-p", "hello", "--save-state", first, "--force") == 0
    assert Path(first).read_bytes() != before


def test_a_system_prompt_is_prefilled_once(artifact, tmp_path):
    path = tmp_path / "prefix.state"
    options = ("--system", "You are a helpful assistant.", "--prefix-cache", str(path), "--json")
    first, second = (
        json.loads(cli("chat", str(artifact), "-p", "What color is the sky?", *options).stdout) for _ in range(2)
    )
    assert first["reply"] == second["reply"]
    assert second["cached_tokens"] > 5
    assert second["prompt_tokens"] == first["prompt_tokens"]
    assert code_of("chat", str(artifact), "-p", "hi", "--system", "Be brief.", "--prefix-cache", str(path)) == 2


def test_chat_goes_on_without_the_oldest_turns_and_says_so(artifact):
    questions = ["What color is the sky?"] * 16
    replies, beside = talk(artifact, *questions, options=("--on-full", "forget", "--max-tokens", "16"))
    assert len(replies) == len(questions)
    assert "the window was full: forgot the oldest" in beside
    _, refused = talk(artifact, *questions, options=("--max-tokens", "16"))
    assert "the conversation is full" in refused
    assert code_of("chat", str(artifact), "--on-full", "panic", "-p", "hello") == 2
