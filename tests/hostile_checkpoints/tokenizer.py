"""Tokenizer, chat template and generation defaults."""

from __future__ import annotations

import json
import os
from pathlib import Path

from hostile_checkpoints.spoil import HOSTILE, Spoil, edit, hostile, link_outside


def text_file(name: str, content: bytes) -> Spoil:
    def spoil(folder: Path) -> str:
        (folder / name).write_bytes(content)
        return name

    return spoil


def template(source: str) -> Spoil:
    return text_file("chat_template.jinja", source.encode())


HOSTILE |= {
    "tokenizer_empty": text_file("tokenizer.json", b""),
    "tokenizer_is_an_empty_object": text_file("tokenizer.json", b"{}"),
    "tokenizer_is_a_list": text_file("tokenizer.json", b"[]"),
    "tokenizer_nested_deep": text_file("tokenizer.json", b'{"model":' + b"[" * 100_000),
    "tokenizer_settings_not_json": text_file("tokenizer_config.json", b"{"),
    "generation_config_not_json": text_file("generation_config.json", b"{"),
    "template_not_utf8": text_file("chat_template.jinja", b"\xff\xfe"),
    "template_oversized": text_file("chat_template.jinja", b" " * (2 << 20)),
    "template_does_not_compile": template("{% for message in messages %}"),
    "template_nested_deep": template("{{" + "(" * 50_000 + ")" * 50_000 + "}}"),
    "template_reaches_for_python": template("{{ ''.__class__.__mro__[1].__subclasses__() }}"),
    "template_reaches_for_globals": template("{{ cycler.__init__.__globals__.os.system('true') }}"),
    "template_reads_files": template("{% include '/etc/passwd' %}"),
    "template_changes_the_messages": template("{{ messages.append(1) }}"),
    "template_counts_to_a_billion": template("{% for i in range(10**9) %}x{% endfor %}"),
    "template_writes_without_end": template("{% for i in range(99999) %}{{ 'a' * 1000 }}{% endfor %}"),
    "template_repeats_a_terabyte": template("{{ 'a' * 10**12 }}"),
    "template_pads_to_a_terabyte": template("{{ 'a' | center(10**12) }}"),
    "template_doubles_a_text": template(
        "{% set n = namespace(s='ab') %}{% for i in range(99) %}{% set n.s = n.s ~ n.s %}{% endfor %}{{ n.s | length }}"
    ),
    "template_calls_itself": template("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}"),
}


@hostile
def tokenizer_truncated(folder: Path) -> str:
    path = folder / "tokenizer.json"
    path.write_bytes(path.read_bytes()[:-200])
    return "tokenizer.json"


@hostile
def tokenizer_of_a_strange_model(folder: Path) -> str:
    edit(folder, "tokenizer.json", model={"type": "Telepathy", "vocab": {}})
    return "tokenizer.json"


@hostile
def tokenizer_without_a_vocabulary(folder: Path) -> str:
    edit(folder, "tokenizer.json", added_tokens=[], model={"type": "BPE", "vocab": {}, "merges": []})
    return "tokenizer.json"


@hostile
def tokenizer_larger_than_the_model(folder: Path) -> str:
    model = json.loads((folder / "tokenizer.json").read_text())["model"]
    model["vocab"]["one more"] = 1 << 20
    edit(folder, "tokenizer.json", model=model)
    return "vocab_size"


@hostile
def tokenizer_adds_an_unknown_id(folder: Path) -> str:
    edit(
        folder,
        "tokenizer.json",
        post_processor={
            "type": "TemplateProcessing",
            "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
            "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 0}}],
            "special_tokens": {"<s>": {"id": "<s>", "ids": [4_000_000], "tokens": ["<s>"]}},
        },
    )
    return "4000000"


@hostile
def tokenizer_oversized(folder: Path) -> str:
    os.truncate(folder / "tokenizer.json", 65 << 20)  # sparse: takes no room on the disk
    return "tokenizer.json"


@hostile
def tokenizer_links_outside(folder: Path) -> str:
    return link_outside(folder, "tokenizer.json")


@hostile
def template_links_outside(folder: Path) -> str:
    return link_outside(folder, "chat_template.jinja")


@hostile
def template_in_the_settings_is_a_number(folder: Path) -> str:
    (folder / "chat_template.jinja").unlink()
    edit(folder, "tokenizer_config.json", chat_template=3)
    return "chat_template"


@hostile
def generation_ends_outside_the_vocabulary(folder: Path) -> str:
    edit(folder, "generation_config.json", eos_token_id=[7, 1 << 20])
    return "generation_config.json"
