"""`lfm2-export chat`: talk to an artifact through its real runtime."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from lfm2_export.conversation import Conversation

NAME = "chat"


def run(
    artifact: Annotated[Path, typer.Argument(help="Artifact folder.")],
    prompt: Annotated[str | None, typer.Option("--prompt", "-p", help="Say this, print the reply, leave.")] = None,
    system: Annotated[str | None, typer.Option(help="System prompt.")] = None,
    runtime: Annotated[str | None, typer.Option(help="Runtime to use. [the artifact's own]")] = None,
    limit: Annotated[int, typer.Option("--max-tokens", min=1, help="Longest reply.")] = 256,
    temperature: Annotated[
        float, typer.Option(min=0.0, help="0 is greedy; LFM2's cards recommend 0.3 (min-p 0.15, penalty 1.05).")
    ] = 0.0,
    seed: Annotated[int, typer.Option(help="Of the sampler.")] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="With --prompt: print reply and speed as JSON.")] = False,
) -> None:
    """Chat with an artifact; replies stream, tok/s at the end. /reset starts over, /exit or Ctrl-D leaves."""
    import json
    from dataclasses import asdict

    from lfm2_export.cli import console
    from lfm2_export.errors import UsageError
    from lfm2_export.generation import MinPSampler, greedy

    if as_json and prompt is None:
        raise UsageError("--json needs --prompt")
    conversation = _open(artifact, runtime)
    conversation.sampler = MinPSampler(temperature=temperature, seed=seed) if temperature else greedy
    if system is not None:
        conversation.messages.append({"role": "system", "content": system})
    if prompt is None:
        _talk(conversation, limit)
    elif as_json:
        reply = "".join(conversation.reply(prompt, limit))
        console.print_json(json.dumps({"reply": reply, **asdict(conversation.speed)}))
    else:
        _stream(conversation, prompt, limit)


def _open(folder: Path, runtime: str | None) -> Conversation:
    from lfm2_export import runtimes
    from lfm2_export.artifact.folder import open_artifact
    from lfm2_export.checkpoint.config import from_dict
    from lfm2_export.checkpoint.tokenizer import ChatTokenizer
    from lfm2_export.conversation import Conversation
    from lfm2_export.errors import UsageError

    artifact = open_artifact(folder)
    tokenizer = ChatTokenizer.load(folder, from_dict(artifact.manifest.source.config, f"{folder}: manifest.json"))
    if tokenizer is None or not tokenizer.has_template:
        raise UsageError(f"{folder} has no tokenizer or chat template; chat needs both (parity works without)")
    able = [name for name in runtimes.names() if runtimes.find(name).runs(artifact.manifest)]
    chosen = runtime or able[0]
    if chosen not in able:
        raise UsageError(f"runtime {chosen!r} does not run this artifact; able: {', '.join(able)}")
    runtimes.find(chosen).version()  # a missing library says so before the model is loaded
    return Conversation(runtimes.find(chosen).open_session(folder, artifact.manifest), tokenizer)


def _talk(conversation: Conversation, limit: int) -> None:
    from lfm2_export.cli import console
    from lfm2_export.errors import WindowExceededError

    console.err.print(f"[dim]{conversation.session.runtime}; /reset starts over, /exit leaves[/]")
    while True:
        try:
            text = console.out.input("[bold]> [/]").strip()
        except EOFError:
            return
        if text == "/exit":
            return
        if text == "/reset":
            conversation.reset()
        elif text:
            try:
                _stream(conversation, text, limit)
            except WindowExceededError as error:
                console.err.print(f"[yellow]the conversation is full[/]: {error}; /reset starts over")


def _stream(conversation: Conversation, text: str, limit: int) -> None:
    from lfm2_export.cli import console

    for piece in conversation.reply(text, limit):
        console.out.print(piece, end="", markup=False, soft_wrap=True)
        console.out.file.flush()
    console.out.print()
    console.err.print(f"[dim]{conversation.speed.line()}[/]")
