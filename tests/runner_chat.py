"""`lfm2_runner chat`, and Python's own conversation over the same program, which it must equal."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from pathlib import Path

from runner_program import Ended, need_runner

from lfm2_export.artifact.folder import Artifact
from lfm2_export.chat.conversation import Conversation
from lfm2_export.chat.overflow import OnFull
from lfm2_export.checkpoint.config import LFM2Config, from_dict
from lfm2_export.checkpoint.tokenizer import ChatTokenizer
from lfm2_export.runtimes import native

SYSTEM = "Be brief."
SAID = [
    "What color is the sky?",
    "My name is Anna.",
    "  What is my name?\t",
    "Repeat: café 😀 日本語 <|im_end|> it's",
    "What color is the grass?",
    "Hello",
]


def config_of(artifact: Artifact) -> LFM2Config:
    return from_dict(artifact.manifest.source.config, "manifest.json")


def tokenizer_of(artifact: Artifact) -> ChatTokenizer:
    tokenizer = ChatTokenizer.load(artifact.folder, config_of(artifact))
    assert tokenizer is not None
    return tokenizer


def talk(artifact: Path, said: Sequence[str], *options: object, runner: Sequence[str | Path] = ()) -> Ended:
    line = [*(runner or [need_runner()]), "chat", artifact, "--greedy", *options]
    done = subprocess.run(
        [*map(str, line)], input="\n".join(said), capture_output=True, text=True, timeout=300, check=False
    )
    return Ended(done.returncode, done.stdout, done.stderr)


def python_conversation(artifact: Artifact, system: str = "", on_full: OnFull = "stop") -> Conversation:
    session = native.RUNTIME.open_session(artifact.folder, artifact.manifest)
    messages = [{"role": "system", "content": system}] if system else []
    return Conversation(session, tokenizer_of(artifact), messages, on_full=on_full)


def python_talk(
    artifact: Artifact, said: Sequence[str], limit: int, system: str = "", on_full: OnFull = "stop"
) -> list[str]:
    conversation = python_conversation(artifact, system, on_full)
    return ["".join(conversation.reply(text.strip(), limit)) + "\n" for text in said]
