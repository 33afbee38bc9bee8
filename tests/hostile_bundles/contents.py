"""The artifact's other files, and the golden cases."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from small_bundles import archived, described

from hostile_bundles.spoil import HOSTILE, Files, Spoil, without
from lfm2_export.artifact.manifest import FileEntry
from lfm2_export.bundle.archive import measure


def file_with(name: str, data: bytes) -> Spoil:
    """One file replaced, manifest and bundle.json vouching for it."""

    def spoil(files: Files, place: Path) -> Path:
        manifest = json.loads(files["manifest.json"])
        if name in manifest["files"]:
            found = measure(data)
            manifest["files"][name] = FileEntry(size=found.size, sha256=found.sha256).model_dump()
        others = {**without(files, "bundle.json"), name: data, "manifest.json": json.dumps(manifest).encode()}
        return archived(described(others), place / "b.zip")

    return spoil


def golden_with(change: Callable[[dict[str, Any]], object]) -> Spoil:
    def spoil(files: Files, place: Path) -> Path:
        document = json.loads(files["golden.json"])
        change(document)
        return file_with("golden.json", json.dumps(document).encode())(files, place)

    return spoil


def case_with(**changes: Any) -> Spoil:
    return golden_with(lambda d: d["cases"][0].update(changes))


def step_with(**changes: Any) -> Spoil:
    return golden_with(lambda d: d["cases"][0]["steps"][0].update(changes))


def tool_prompt(**changes: Any) -> Spoil:
    prompt = {"messages": [{"role": "user", "content": "x"}], "tools": [{"name": "f"}], "prompt": [1], **changes}
    return golden_with(lambda d: d.update(tool_prompts=[prompt]))


def config_file(**changes: Any) -> Spoil:
    return lambda files, place: file_with(
        "config.json", json.dumps({**json.loads(files["config.json"]), **changes}).encode()
    )(files, place)


HOSTILE |= {
    "a program of another format": (file_with("model.pte", b"\x10\0\0\0ET99" + b"x" * 99), "not an ExecuTorch program"),
    "a program that is empty": (file_with("model.pte", b""), "not an ExecuTorch program"),
    "a config of another shape": (config_file(hidden_size=16), "another shape"),
    "a config of another model": (config_file(model_type="llama"), "only 'lfm2'"),
    "a config that is no JSON": (file_with("config.json", b"{"), "not valid JSON"),
    "a config that is a list": (file_with("config.json", b"[]"), "not a JSON object"),
    "a tokenizer of other ids": (file_with("tokenizer.json", b'{"model": {"vocab": {"a": 32}}}'), "ids outside"),
    "a tokenizer with negative ids": (file_with("tokenizer.json", b'{"added_tokens": [{"id": -1}]}'), "ids outside"),
    "a tokenizer with ids as text": (file_with("tokenizer.json", b'{"added_tokens": [{"id": "1"}]}'), "ids outside"),
    "a tokenizer that is binary": (file_with("tokenizer.json", b"\xff\0"), "not valid JSON"),
    "an end token beyond the model": (config_file(eos_token_id=99), "eos_token_id"),
    "golden cases missing": (
        lambda f, p: archived(described(without(without(f, "bundle.json"), "golden.json")), p / "b.zip"),
        "holds no golden.json",
    ),
    "golden cases that are none": (golden_with(lambda d: d.update(cases=[])), "cases: list should"),
    "golden cases of another gate": (golden_with(lambda d: d.update(max_error=100.0)), "the recipe's gate"),
    "a golden token beyond the model": (case_with(prompt=[1, 32]), "outside the vocabulary"),
    "a golden token below zero": (case_with(prompt=[-1]), "outside the vocabulary"),
    "a golden token as a fraction": (case_with(prompt=[1.5]), "prompt.0"),
    "a golden prompt longer than the window": (case_with(prompt=[1] * 64), "exceed the window"),
    "a golden prompt that is empty": (case_with(prompt=[]), "prompt: list should"),
    "a golden message without a role": (case_with(messages=[{"content": "x"}]), "role"),
    "a tool prompt beyond the model": (tool_prompt(prompt=[32]), "outside the vocabulary"),
    "a tool prompt without a role": (tool_prompt(messages=[{"content": "x"}]), "role"),
    "a tool prompt without tools": (tool_prompt(tools=[]), "tools: list should"),
    "golden logits that are not a number": (step_with(logits=[float("nan"), 1.0]), "not valid JSON"),
    "golden logits out of order": (step_with(logits=[1.0, 2.0]), "best first"),
    "golden logits above their scale": (step_with(logits=[5.0, 1.0]), "best first"),
    "golden logits fewer than tokens": (step_with(logits=[2.5]), "one for each"),
    "a golden token twice": (step_with(top=[3, 3]), "one for each"),
    "a golden digest that is none": (step_with(sha256="?"), "sha256"),
    "golden cases with an unknown key": (golden_with(lambda d: d.update(evil=1)), "evil"),
}  # fmt: skip
