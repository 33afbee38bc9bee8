"""The tokenizer and chat template say what transformers' say, and stay within their limits."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

import pytest
from checkpoints import tiny_config
from hostile_checkpoints.spoil import edit
from transformers import PreTrainedTokenizerFast

from lfm2_export.checkpoint import template
from lfm2_export.checkpoint.template import ChatTemplate
from lfm2_export.checkpoint.tokenizer import ChatTokenizer
from lfm2_export.errors import CheckpointError

CONVERSATIONS: dict[str, list[dict[str, Any]]] = {
    "one question": [{"role": "user", "content": "What color is the sky?"}],
    "system and turns": [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "2 < 3 & 'x'?"},
        {"role": "assistant", "content": "Größer: 三\n\n"},
        {"role": "user", "content": "🙂"},
    ],
    "tool result": [{"role": "user", "content": "?"}, {"role": "tool", "content": '{"a": 1}'}],
}
TOOLS = [{"name": "wetter", "description": "für Städte <x>", "parameters": {"z": 1, "a": 2}}]


def load(folder: Path) -> ChatTokenizer:
    tokenizer = ChatTokenizer.load(folder, tiny_config())
    assert tokenizer is not None
    return tokenizer


@pytest.mark.parametrize("tools", [None, TOOLS], ids=["no tools", "tools"])
@pytest.mark.parametrize("messages", CONVERSATIONS.values(), ids=CONVERSATIONS)
@pytest.mark.parametrize("prompt", [True, False])
def test_renders_and_encodes_as_transformers_does(
    tiny_checkpoint: Path, messages: list[dict[str, Any]], tools: list[Any] | None, prompt: bool
) -> None:
    ours, theirs = load(tiny_checkpoint), PreTrainedTokenizerFast.from_pretrained(tiny_checkpoint)
    text = ours.render(messages, tools=tools, add_generation_prompt=prompt)
    assert text == theirs.apply_chat_template(
        messages, tools=tools, add_generation_prompt=prompt, tokenize=False, return_dict=False
    )
    assert ours.encode(text) == theirs(text, add_special_tokens=False).input_ids
    assert ours.encode(text, add_special_tokens=True) == theirs(text).input_ids
    assert ours.decode(ours.encode(text), skip_special_tokens=False) == text


TEMPLATES = [
    "{{ bos_token }}{{ eos_token }}{{ pad_token }}{{ unk_token }}|{{ tools }}|{{ add_generation_prompt }}",
    "{% for m in messages %}\n  {% if loop.first %}\n{{ m | tojson }}\n  {% endif %}\n{% endfor %}\nend",
    "{{ messages | tojson(indent=2) }}",
    "{% for m in messages %}{% if loop.index > 1 %}{% break %}{% endif %}{{ m.role }}{% endfor %}",
    "{% for m in messages %}{% generation %}{{ m.content }}{% endgeneration %}{% endfor %}",
    "{% set ns = namespace(n=0) %}{% for m in messages %}{% set ns.n = ns.n + 1 %}{% endfor %}{{ ns.n }}",
    "{{ messages[0].content.split(' ') | join('_') | upper }}{{ missing }}{{ messages[0].missing is defined }}",
    "{{ strftime_now('%Y') }}",
]


@pytest.mark.parametrize("source", TEMPLATES)
def test_speaks_transformers_dialect_of_jinja(tiny_checkpoint: Path, source: str) -> None:
    (tiny_checkpoint / "chat_template.jinja").write_text(source)
    theirs = PreTrainedTokenizerFast.from_pretrained(tiny_checkpoint)
    for messages in CONVERSATIONS.values():
        expected = theirs.apply_chat_template(messages, tokenize=False, add_generation_prompt=True, return_dict=False)
        assert load(tiny_checkpoint).render(messages) == expected


@pytest.mark.parametrize("named", [False, True])
def test_a_template_may_live_in_the_settings(tiny_checkpoint: Path, named: bool) -> None:
    (tiny_checkpoint / "chat_template.jinja").unlink()
    text: Any = "{{ bos_token }}{{ messages[0].content }}"
    edit(
        tiny_checkpoint,
        "tokenizer_config.json",
        chat_template=[{"name": "tool_use", "template": "no"}, {"name": "default", "template": text}]
        if named
        else text,
        bos_token={"content": "<|startoftext|>", "special": True},
    )
    assert load(tiny_checkpoint).render([{"role": "user", "content": "x"}]) == "<|startoftext|>x"


def test_without_a_template_there_is_nothing_to_render(tiny_checkpoint: Path) -> None:
    (tiny_checkpoint / "chat_template.jinja").unlink()
    tokenizer = load(tiny_checkpoint)
    assert not tokenizer.has_template
    with pytest.raises(CheckpointError, match="no chat template"):
        tokenizer.render([])


def test_without_a_tokenizer_there_is_none(tiny_checkpoint: Path) -> None:
    (tiny_checkpoint / "tokenizer.json").unlink()
    assert ChatTokenizer.load(tiny_checkpoint, tiny_config()) is None


def test_a_stream_gives_the_text_of_the_whole(tiny_checkpoint: Path) -> None:
    tokenizer = load(tiny_checkpoint)
    text = "Größe 三🙂 <|tool_call_start|>[f(x=1)]<|tool_call_end|> done"
    stream, pieces = tokenizer.stream(), []
    for token in tokenizer.encode(text):
        pieces.append(stream.step(token))
    assert "".join(piece for piece in pieces if piece) == text
    assert None in pieces  # half a character is held back
    assert not any("\ufffd" in piece for piece in pieces if piece)


def test_a_stream_can_hide_special_tokens(tiny_checkpoint: Path) -> None:
    tokenizer = load(tiny_checkpoint)
    stream = tokenizer.stream(skip_special_tokens=True)
    assert "".join(stream.step(token) or "" for token in tokenizer.encode("a<|im_end|>b")) == "ab"


def test_a_length_limit_in_the_file_does_not_shorten_prompts(tiny_checkpoint: Path) -> None:
    limit = {"direction": "Right", "max_length": 3, "strategy": "LongestFirst", "stride": 0}
    edit(tiny_checkpoint, "tokenizer.json", truncation=limit)
    assert len(load(tiny_checkpoint).encode("one two three four five six")) > 3


def test_replies_end_where_config_or_generation_config_say(tiny_checkpoint: Path) -> None:
    assert load(tiny_checkpoint).eos_ids == (7,)
    edit(tiny_checkpoint, "generation_config.json", eos_token_id=[2, 7])
    assert load(tiny_checkpoint).eos_ids == (7, 2)


def test_replies_end_at_the_tokenizers_end_when_no_config_says(tiny_checkpoint: Path) -> None:
    (tiny_checkpoint / "generation_config.json").unlink()
    config = tiny_config()
    tokenizer = ChatTokenizer.load(tiny_checkpoint, type(config)(**(vars(config) | {"eos_token_ids": ()})))
    assert tokenizer is not None
    assert tokenizer.eos_ids == (7,)


def test_a_template_may_object_to_a_conversation(tiny_checkpoint: Path) -> None:
    objection = "{% if messages[0].role != 'system' %}{{ raise_exception('system\nfirst') }}{% endif %}ok"
    (tiny_checkpoint / "chat_template.jinja").write_text(objection)
    tokenizer = load(tiny_checkpoint)
    with pytest.raises(CheckpointError, match=r"refuses this conversation: system first$"):
        tokenizer.render(CONVERSATIONS["one question"])
    assert tokenizer.render(CONVERSATIONS["system and turns"]) == "ok"


RUNAWAY = "{% if messages | length > 1 %}{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}"


def test_a_template_that_runs_away_is_stopped_and_the_next_prompt_rendered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(template, "_SECONDS", 1)
    chat = ChatTemplate(RUNAWAY + "{% endif %}ok", "here")
    start = time.monotonic()
    with pytest.raises(CheckpointError, match="here: the chat template was stopped") as refusal:
        chat.render({"messages": [1, 2]})
    assert time.monotonic() - start < 30
    assert "\n" not in str(refusal.value)
    assert chat.render({"messages": [1]}) == "ok"


def test_the_templates_process_ends_with_it() -> None:
    chat = ChatTemplate("ok", "here")
    assert chat._process is not None
    process = chat._process.pid
    os.kill(process, 0)
    del chat
    with pytest.raises(ProcessLookupError):
        os.kill(process, 0)


def test_surrogates_and_long_conversations_pass(tiny_checkpoint: Path) -> None:
    messages = [{"role": "user", "content": "lone \ud800 half"}, *CONVERSATIONS["system and turns"] * 500]
    (tiny_checkpoint / "chat_template.jinja").write_text("{{ messages | tojson }}")
    assert json.loads(load(tiny_checkpoint).render(messages)) == messages


def test_encoding_a_lone_surrogate_is_refused_not_a_crash(tiny_checkpoint: Path) -> None:
    with pytest.raises(CheckpointError):
        load(tiny_checkpoint).encode("\ud800")
