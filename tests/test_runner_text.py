"""Text in C++: `lfm2_runner text` beside Python's tokenizer and template, token for token."""

from __future__ import annotations

import json
import random
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from runner_chat import SAID, config_of, python_talk, talk, tokenizer_of
from runner_program import Ended, copy, need_runner
from text_mixtures import mixtures

from lfm2_export.artifact.folder import Artifact
from lfm2_export.bundle.golden import golden_cases
from lfm2_export.checkpoint.tokenizer import ChatTokenizer
from lfm2_export.errors import CheckpointError
from lfm2_export.model.load import open_checkpoint
from lfm2_export.runtimes import arm64


def ask(requests: Sequence[object], folder: Path, runner: Sequence[str | Path] = ()) -> list[Any]:
    """What `lfm2_runner text` answers to each."""
    lines = "".join(json.dumps(each) + "\n" for each in requests)
    line = [*(runner or [need_runner()]), "text", folder]
    done = subprocess.run(line, input=lines, capture_output=True, text=True, timeout=300, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    return [json.loads(answer) for answer in done.stdout.split("\n")[:-1]]


def conversations(texts: list[str], count: int) -> list[dict[str, Any]]:
    """Requests for prompts: with and without a system prompt and tools, roles in any order."""
    chosen = random.Random(3)
    made: list[dict[str, Any]] = []
    for number in range(count):
        roles = [chosen.choice(["user", "assistant", "tool"]) for _ in range(chosen.randint(1, 3))]
        messages = [{"role": role, "content": chosen.choice(texts)} for role in ["system"] * (number % 3 == 0) + roles]
        # keys that are not in order, and every kind of value
        function = {"name": "z", "about": chosen.choice(texts), "numbers": [1, -2.5, True, None, {}], "b": {}}
        tools = [{"type": "function", "function": function}, chosen.choice(texts)] if number % 4 == 0 else None
        made.append({"messages": messages, "tools": tools})
    return made


def expected_prompt(tokenizer: ChatTokenizer, request: dict[str, Any]) -> dict[str, Any]:
    prompt = tokenizer.render(request["messages"], tools=request["tools"])
    return {"prompt": prompt, "tokens": tokenizer.encode(prompt)}


def compare(artifact: Artifact, count: int, runner: Sequence[str | Path] = ()) -> None:
    """Encoding, prompts, decoding and streams of `count` texts, equal to Python's."""
    texts, tokenizer = mixtures(count), tokenizer_of(artifact)
    chats = conversations(texts, count // 5)
    chosen = random.Random(5)
    replies = [[chosen.randrange(config_of(artifact).vocab_size) for _ in range(20)] for _ in range(count // 5)]
    streamed = [{"next": token} for reply in replies for token in (None, *reply)]
    requests = [*({"text": text} for text in texts), *chats, *({"tokens": reply} for reply in replies), *streamed]
    answers = iter(ask(requests, artifact.folder, runner))
    assert [next(answers) for _ in texts] == [{"tokens": tokenizer.encode(text)} for text in texts]
    assert [next(answers) for _ in chats] == [expected_prompt(tokenizer, chat) for chat in chats]
    assert [next(answers) for _ in replies] == [{"text": tokenizer.decode(reply, False)} for reply in replies]
    for reply in replies:
        stream = tokenizer.stream()
        assert next(answers) == {}
        assert [next(answers)["text"] for _ in reply] == [stream.step(token) or "" for token in reply]


def test_three_thousand_texts_are_pythons_token_for_token(talking_pte):
    compare(talking_pte, 3000)


def test_arm64_takes_texts_as_python_does(talking_pte):
    emulated = arm64.RUNTIME.command()
    compare(talking_pte, 60, emulated)
    told = talk(talking_pte.folder, SAID[:1], "--max-new", 4, "--threads", 1, runner=emulated)
    assert told.out == "".join(python_talk(talking_pte, SAID[:1], limit=4))


def test_golden_cases_are_pythons_token_for_token(talking_pte):
    tokenizer = tokenizer_of(talking_pte)
    for case in golden_cases(talking_pte, tokenizer)["cases"]:
        ids = [step["top"][0] for step in case["steps"] if step["top"][0] not in tokenizer.eos_ids]
        prompt, reply = ask([{"messages": case["messages"]}, {"tokens": ids}], talking_pte.folder)
        assert prompt["tokens"] == case["prompt"]
        assert reply["text"] == case["reply"]


def test_without_its_library_the_runner_says_so(talking_pte, tmp_path):
    alone = shutil.copy(need_runner(), tmp_path / "lfm2_runner")
    for command in ("chat", "text"):
        done = subprocess.run(
            [alone, command, talking_pte.folder], capture_output=True, text=True, timeout=60, check=False
        )
        assert "built without lfm2_text.so" in Ended(done.returncode, done.stdout, done.stderr).refused()


# --- files that nobody vouches for -------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """What `text` reads of an artifact: manifest, tokenizer and template, to spoil."""
    checkpoint = open_checkpoint("nano")
    made = copy(checkpoint.folder, tmp_path / "artifact")
    config = json.loads((made / "config.json").read_text())
    (made / "manifest.json").write_text(json.dumps({"source": {"config": {"vocab_size": config["vocab_size"]}}}))
    return made


def refusal(folder: Path) -> str:
    done = subprocess.run(
        [need_runner("x86_64-asan"), "text", folder], input="", capture_output=True, text=True, timeout=120, check=False
    )
    return Ended(done.returncode, done.stdout, done.stderr).refused()


def edit_tokenizer(folder: Path, *path: str | int, value: Any) -> None:
    document = json.loads((folder / "tokenizer.json").read_text())
    node = document
    for key in path[:-1]:
        node = node[key]
    node[path[-1]] = value
    (folder / "tokenizer.json").write_text(json.dumps(document))


ADDED = {"id": 30, "content": "<|im", "single_word": False, "lstrip": False, "rstrip": False, "special": True}


@pytest.mark.parametrize(
    ("path", "value", "why"),
    [
        (["model", "type"], "Unigram", "a model that is not BPE"),
        (["model", "byte_fallback"], True, "byte_fallback"),
        (["model", "dropout"], 0.1, "dropout"),
        (["normalizer"], {"type": "NFC"}, "normalizer"),
        (["pre_tokenizer", "pretokenizers", 0, "pattern", "Regex"], r"\s+|\S+", "another pre_tokenizer"),
        (["pre_tokenizer"], None, "another pre_tokenizer"),
        (["decoder", "type"], "Metaspace", "a decoder"),
        (["added_tokens", 3, "lstrip"], True, "an added token with lstrip"),
        (["added_tokens", 3, "content"], "", "without text"),
        (["added_tokens", 0], ADDED, "one added token begins another"),
        (["model", "merges"], [], "a token that no merge makes"),
        (["model", "merges"], [3], "not of two tokens"),
        (["model", "vocab", "a"], 4096, "whole number"),
        (["model", "vocab", "a"], -1, "whole number"),
        (["added_tokens", 0, "id"], 1e30, "whole number"),
        (["added_tokens"], {}, "expected a list"),
        (["model"], [], "expected an object"),
    ],
)
def test_a_tokenizer_that_was_not_compared_is_refused_by_name(folder, path, value, why):
    edit_tokenizer(folder, *path, value=value)
    assert why in refusal(folder)


@pytest.mark.parametrize(
    ("name", "content", "why"),
    [
        ("tokenizer.json", None, "No such file"),
        ("tokenizer.json", "{", "not valid JSON"),
        ("tokenizer.json", "[" * 100_000, "nested too deeply"),
        ("tokenizer_config.json", "[]", "expected an object"),
        ("generation_config.json", '{"eos_token_id": [7, 5000]}', "whole number"),
        ("manifest.json", "{}", "source: missing"),
        ("chat_template.jinja", "{% for %}", "the chat template fails"),
        ("chat_template.jinja", "{{" + "(" * 500_000, "stopped"),
        ("chat_template.jinja", "x" * 2_000_000, "at most 1048576"),
    ],
)
def test_a_damaged_file_is_one_line(folder, name, content, why):
    (folder / name).unlink()
    if content is not None:
        (folder / name).write_text(content)
    assert why in refusal(folder)


@pytest.mark.parametrize(
    ("template", "why"),
    [
        ("{{ raise_exception('not like this') }}", "not like this"),
        ("{{ messages | no_such_filter }}", "no_such_filter"),
        ("{{ 2 ** 3 }}", "the chat template fails"),
        ("{% for a in range(1000000000) %}x{% endfor %}", "chat template"),
        ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "tokenizer or chat template was stopped"),
    ],
)
def test_a_hostile_template_is_one_line(folder, template, why):
    (folder / "chat_template.jinja").write_text(template)
    line = [need_runner(), "text", folder]
    asked = json.dumps({"messages": [{"role": "user", "content": "hi"}]}) + "\n"
    done = subprocess.run(line, input=asked, capture_output=True, text=True, timeout=120, check=False)
    said = (
        json.loads(done.stdout)["error"]
        if done.returncode == 0
        else Ended(done.returncode, done.stdout, done.stderr).refused()
    )
    assert why in said
    assert "\n" not in said.rstrip("\n")


def test_a_template_may_lie_in_the_settings_and_the_end_in_the_generation_config(folder):
    template = (folder / "chat_template.jinja").read_text()
    (folder / "chat_template.jinja").unlink()
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    settings |= {"chat_template": [{"name": "default", "template": template}], "bos_token": {"content": "<|pad|>"}}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    messages = [{"role": "user", "content": "hi"}]
    tokenizer = ChatTokenizer.load(folder, open_checkpoint("nano").config)
    assert tokenizer is not None
    assert ask([{"messages": messages, "tools": None}], folder) == [
        expected_prompt(tokenizer, {"messages": messages, "tools": None})
    ]
    settings["chat_template"] = None
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    assert "no chat template" in refusal(folder)
    with pytest.raises(CheckpointError, match="no chat template"):
        ChatTokenizer.load(folder, open_checkpoint("nano").config).render(messages)  # type: ignore[union-attr]
