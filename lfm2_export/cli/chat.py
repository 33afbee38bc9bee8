"""`lfm2-export chat`: talk to an artifact through its real runtime."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from lfm2_export.artifact.folder import Artifact
    from lfm2_export.chat.conversation import Conversation
    from lfm2_export.chat.overflow import OnFull
    from lfm2_export.cli.slash import Chat

NAME = "chat"


def run(
    artifact: Annotated[Path, typer.Argument(help="Artifact folder.")],
    prompt: Annotated[str | None, typer.Option("--prompt", "-p", help="Say this, print the reply, leave.")] = None,
    system: Annotated[str | None, typer.Option(help="System prompt.")] = None,
    runtime: Annotated[
        str | None,
        typer.Option(help="executorch, native, onnxruntime, onnxruntime-packed or genai. [the artifact's own]"),
    ] = None,
    image: Annotated[
        list[Path] | None, typer.Option("--image", help="A picture for the first message (repeatable).")
    ] = None,
    limit: Annotated[int, typer.Option("--max-tokens", min=1, help="Longest reply.")] = 256,
    temperature: Annotated[
        float, typer.Option(min=0.0, help="0 is greedy; LFM2's cards recommend 0.3 (min-p 0.15, penalty 1.05).")
    ] = 0.0,
    seed: Annotated[int, typer.Option(help="Of the sampler.")] = 0,
    on_full: Annotated[str, typer.Option(help="When the window is full: stop, or forget the oldest turns.")] = "stop",
    draft: Annotated[
        str | None,
        typer.Option(help="Verify several tokens at once: lookup (in what was said), or a smaller model's artifact."),
    ] = None,
    load: Annotated[Path | None, typer.Option("--load-state", help="Go on from a conversation saved here.")] = None,
    save: Annotated[Path | None, typer.Option("--save-state", help="Save the conversation here at the end.")] = None,
    prefix_cache: Annotated[
        Path | None, typer.Option("--prefix-cache", help="Keep the system prompt's state here; made if missing.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Let --save-state and /save replace a file.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="With --prompt: print reply and speed as JSON.")] = False,
) -> None:
    """Chat with an artifact; replies stream, tok/s at the end. /help lists what else can be said."""
    import json
    from dataclasses import asdict

    from lfm2_export.artifact.folder import open_artifact
    from lfm2_export.chat.open_drafts import draft_source
    from lfm2_export.chat.sampling import MinPSampler, greedy
    from lfm2_export.chat.saved_state import KIND
    from lfm2_export.cli import console
    from lfm2_export.cli.slash import check_takes_images
    from lfm2_export.errors import UsageError
    from lfm2_export.files import check_free_file
    from lfm2_export.images.opening import open_image

    if as_json and prompt is None:
        raise UsageError("--json needs --prompt")
    if load is not None and (system is not None or prefix_cache is not None):
        raise UsageError("--load-state brings its own system prompt; leave out --system and --prefix-cache")
    if save is not None:
        check_free_file(save, force, KIND)
    opened = open_artifact(artifact)
    if image:
        check_takes_images(opened)
    pictures = [(open_image(path), str(path)) for path in image or ()]
    chat = _open(opened, runtime, force)
    conversation = chat.conversation
    if draft is not None:
        conversation.source = draft_source(draft, conversation.session, chat.artifact)
    conversation.on_full = _on_full(on_full)
    conversation.sampler = MinPSampler(temperature=temperature, seed=seed) if temperature else greedy
    if save is not None:
        conversation.need_state()  # said now, not after the talk
    if load is not None:
        conversation.resume(load, chat.artifact)
    if system is not None:
        conversation.messages.append({"role": "system", "content": system})
    if prefix_cache is not None:
        conversation.cache_prefix(prefix_cache, chat.artifact)
    conversation.pictures = [chat.look(*picture) for picture in pictures]
    if prompt is None:
        _talk(chat, limit)
    elif as_json:
        reply = "".join(conversation.reply(prompt, limit))
        console.print_json(json.dumps({"reply": reply, **asdict(conversation.speed)}))
    else:
        _stream(conversation, prompt, limit)
    if save is not None:
        conversation.save(save, chat.artifact, force)


def _open(artifact: Artifact, runtime: str | None, force: bool) -> Chat:
    from lfm2_export import runtimes
    from lfm2_export.chat.conversation import Conversation
    from lfm2_export.checkpoint.config import from_dict
    from lfm2_export.checkpoint.tokenizer import ChatTokenizer
    from lfm2_export.checkpoint.vision_config import read_model_config
    from lfm2_export.cli.slash import Chat
    from lfm2_export.errors import UsageError
    from lfm2_export.images.pictures import ImageToken
    from lfm2_export.images.viewing import Viewer

    folder = artifact.folder
    tokenizer = ChatTokenizer.load(folder, from_dict(artifact.manifest.source.config, f"{folder}: manifest.json"))
    if tokenizer is None or not tokenizer.has_template:
        raise UsageError(f"{folder} has no tokenizer or chat template; chat needs both (parity works without)")
    chosen = runtimes.find(runtime) if runtime else runtimes.first(artifact.manifest)
    runtimes.check_runs(chosen.name, artifact.manifest)
    chosen.version()  # a missing library says so before the model is loaded
    session = chosen.open_session(folder, artifact.manifest)
    conversation = Conversation(session, tokenizer)
    vision = read_model_config(folder / "config.json").vision if artifact.manifest.takes_images else None
    if vision is None:
        return Chat(conversation, artifact, force)
    if text := tokenizer.decode([vision.image_token_id], skip_special_tokens=False):
        conversation.image_token = ImageToken(vision.image_token_id, text)
    return Chat(conversation, artifact, force, Viewer(folder, vision, session))


def _on_full(given: str) -> OnFull:
    from lfm2_export.errors import UsageError

    if given not in ("stop", "forget"):
        raise UsageError(f"--on-full is stop or forget, not {given!r}")
    return "stop" if given == "stop" else "forget"


def _talk(chat: Chat, limit: int) -> None:
    from rich.text import Text

    from lfm2_export.cli import console, slash
    from lfm2_export.errors import Lfm2ExportError, WindowExceededError

    console.err.print(f"{chat.conversation.session.runtime}; /help lists the commands, /exit leaves", style="dim")
    while True:
        try:
            text = console.out.input(Text("> ", "bold")).strip()
        except EOFError:
            return
        if text == "/exit":
            return
        try:
            if text.startswith("/"):
                console.err.print(slash.obey(text, chat), style="dim", soft_wrap=True)
            elif text:
                _stream(chat.conversation, text, limit)
        except WindowExceededError as error:
            _complain(
                f"the conversation is full: {error}; /reset starts over, /rewind takes back the last turn, and a chat "
                "begun with --on-full forget goes on without the oldest ones"
            )
        except Lfm2ExportError as error:
            _complain(str(error))


def _complain(message: str) -> None:
    from lfm2_export.cli import console

    console.err.print(message, style="yellow", soft_wrap=True)


def _stream(conversation: Conversation, text: str, limit: int) -> None:
    from lfm2_export.cli import console

    for piece in conversation.reply(text, limit):
        console.out.print(piece, end="", soft_wrap=True)
        console.out.file.flush()
    console.out.print()
    if forgotten := conversation.speed.forgotten_turns:
        turns = "turn" if forgotten == 1 else f"{forgotten} turns"
        _complain(f"the window was full: forgot the oldest {turns}")
    console.err.print(conversation.speed.line(), style="dim")
