"""What is disturbed: each command that writes something, with what is there before and beside it."""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path

from checkpoints import TOKENIZER_FILES

from lfm2_export.checkpoint import nano
from lfm2_export.checkpoint.config import read_config
from lfm2_export.model.random_init import init_checkpoint

_WEB = Path(__file__).parents[2] / "runtime_tests" / "web" / "node_modules"
_CONFIG = {
    "model_type": "lfm2",
    "vocab_size": read_config(nano.PATH / "config.json").vocab_size,
    "hidden_size": 128,
    "intermediate_size": 128,
    "block_auto_adjust_ff_dim": False,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "layer_types": ["conv", "full_attention"],
    "max_position_embeddings": 256,
    "bos_token_id": 1,
    "eos_token_id": 7,
}
_ONNX = ("--window", "64", "--no-verify", "-q")


@dataclass(frozen=True)
class Scenario:
    """A command line, what it writes, and what is there before: commands that make it, in the same folder."""

    name: str
    words: tuple[str, ...]
    outputs: tuple[str, ...]
    before: tuple[tuple[str, ...], ...] = ()
    plainly: bool = False  # with the renames of systems that cannot exchange two names
    share: int = 1  # of its points, every so-many-th is tried: its runs are long


def _export(recipe: str, output: str, *more: str) -> tuple[str, ...]:
    return ("export", "tiny", "-r", recipe, "-o", output, *_ONNX, *more)


_OLD, _ARTIFACT, _PTE = _export("onnx-fp32", "a"), _export("onnx-int8", "art"), _export("xnnpack-int8", "pte")
_TOKENS = ("--set", "calibration={source: tokens, file: tokens.json, tokens: 32}")
_GPTQ = _export("onnx-int4", "g", "--weights", "gptq", *_TOKENS)
_BUNDLE = ("bundle", "pte", "--for", "desktop", "-q", "-o")
_CHAT = ("chat", "art", "--max-tokens", "4", "--prompt", "What color is the sky?")
_REPORTS = ("r.html", "r.md", "r.json")
_COMPARE = tuple(word for name in _REPORTS for word in ("--report", name))
_INIT = ("init", "--size", "config.json", "-o", "random", "-q")
_TUNE = ("tune", "tiny", "--target", "onnx", "--budget", "0.3MB", "--windows", "2", "-q", "--text", "text.txt")

SCENARIOS = (
    Scenario("export", _export("onnx-int8", "a"), ("a",)),
    Scenario("export --force", _export("onnx-int8", "a", "--force"), ("a",), (_OLD,)),
    Scenario("export --force, no exchange", _export("onnx-int8", "a", "--force"), ("a",), (_OLD,), plainly=True),
    Scenario("export .pte", _export("xnnpack-int8", "deep/er/a"), ("deep/er/a",)),
    Scenario("export gptq", _GPTQ, ("g",)),
    Scenario("init", _INIT, ("random",)),
    Scenario("init --force", (*_INIT, "--seed", "1", "--force"), ("random",), (_INIT,)),
    Scenario(
        "tune",
        (*_TUNE, "-o", "t.yaml", "--plot", "t.png", "--force"),
        ("t.yaml", "t.png"),
        ((*_TUNE[:5], "0.2MB", *_TUNE[6:], "-o", "t.yaml", "--plot", "t.png"),),
    ),
    Scenario(
        "chat --save-state",
        (*_CHAT, "--save-state", "talk.state", "--force"),
        ("talk.state",),
        (_ARTIFACT, (*_CHAT[:-1], "Hello", "--save-state", "talk.state")),
    ),
    Scenario(
        "chat --prefix-cache",
        (*_CHAT, "--system", "Be brief.", "--prefix-cache", "prefix.state"),
        ("prefix.state",),
        (_ARTIFACT,),
    ),
    Scenario("chat, packed", (*_CHAT, "--runtime", "onnxruntime-packed"), (), (_ARTIFACT,)),
    Scenario("bundle", (*_BUNDLE, "b.zip"), ("b.zip",), (_PTE,)),
    Scenario(
        "bundle --force",
        (*_BUNDLE, "b.zip", "--force"),
        ("b.zip",),
        (_PTE, _ARTIFACT, ("bundle", "art", *_BUNDLE[2:], "b.zip")),
    ),
    Scenario(
        "bundle --split",
        (*_BUNDLE, "b.parts", "--split", "100KB", "--force"),
        ("b.parts",),
        (_PTE, (*_BUNDLE, "b.parts", "--split", "50KB")),
    ),
    Scenario(
        "bundle --for web",
        ("bundle", "art", "--for", "web", "-q", "-o", "page", "--node-modules", str(_WEB)),
        ("page",),
        (_ARTIFACT,),
        share=4,
    ),
    Scenario(
        "compare --report",
        ("compare", "a", "art", *_COMPARE, "--force"),
        _REPORTS,
        (_OLD, _ARTIFACT, ("compare", "art", "a", *_COMPARE)),
    ),
)


def lay_out(sandbox: Path) -> Path:
    """The sandbox: `work/` with inputs and what is nobody's business, `cache/` and `tmp/`. Returns `work/`."""
    work = sandbox / "work"
    for folder in (work, sandbox / "cache", sandbox / "tmp", work / "photos", work / ".hidden"):
        folder.mkdir(parents=True)
    (work / "photos" / "holiday.jpg").write_bytes(bytes(range(256)))
    (work / ".hidden" / "keys").write_text("secret")
    (work / "text.txt").write_text("The sky is blue. Grass is green. Snow is white, and so is milk. " * 20)
    (work / "tokens.json").write_text(json.dumps([[1, *range(20, 50)], [1, *range(50, 80)]]))
    (work / "config.json").write_text(json.dumps(_CONFIG))
    init_checkpoint(str(work / "config.json"), work / "tiny")
    for name in TOKENIZER_FILES:
        shutil.copyfile(nano.PATH / name, work / "tiny" / name)
    return work


def environment(sandbox: Path) -> None:
    """Where the commands keep what is not their output: within the sandbox."""
    os.environ |= {"LFM2_EXPORT_CACHE": str(sandbox / "cache"), "TMPDIR": str(sandbox / "tmp")}
