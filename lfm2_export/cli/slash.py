"""What `chat` understands between turns: `/save FILE` and the like. Each command returns the line to show."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from lfm2_export.errors import UsageError

if TYPE_CHECKING:
    from PIL.Image import Image

    from lfm2_export.artifact.folder import Artifact
    from lfm2_export.chat.conversation import Conversation
    from lfm2_export.images.viewing import Picture, Viewer


class Chat(NamedTuple):
    """The conversation that a command acts on."""

    conversation: Conversation
    artifact: Artifact
    force: bool  # whether /save may replace a file
    viewer: Viewer | None = None  # of an artifact that takes images

    def look(self, image: Image, name: str) -> Picture:
        """Return an opened picture as the model sees it. UsageError where it takes none; see `Viewer.look`."""
        check_takes_images(self.artifact)
        assert self.viewer is not None  # opened with the artifact
        return self.viewer.look(image, name)


def check_takes_images(artifact: Artifact) -> None:
    """Raise UsageError for an artifact without the image part of a vision-language model."""
    if not artifact.manifest.takes_images:
        raise UsageError(
            f"{artifact.folder} takes no images: a text model's, or exported with parts=text; export a vision-language "
            "checkpoint whole"
        )


class Command(NamedTuple):
    argument: str  # its name in the help; empty when the command takes none
    help: str
    run: Callable[[Chat, str], str]


def obey(text: str, chat: Chat) -> str:
    """Carry out a line that begins with a slash. UsageError for an unknown command or a wrong argument."""
    name, _, argument = text.partition(" ")
    argument = argument.strip()
    if name not in COMMANDS:
        raise UsageError(f"no command {name}, and a message cannot begin with a slash; /help lists the commands")
    command = COMMANDS[name]
    if bool(argument) != bool(command.argument):
        raise UsageError(f"say {name} {command.argument}".rstrip())
    return command.run(chat, argument)


def _help(chat: Chat, _: str) -> str:
    return "\n".join(f"{f'{name} {c.argument}':<16}{c.help}" for name, c in COMMANDS.items())


def _reset(chat: Chat, _: str) -> str:
    chat.conversation.reset()
    return "started over"


def _rewind(chat: Chat, _: str) -> str:
    chat.conversation.rewind()
    return f"took back the last turn; {_whereabouts(chat)}"


def _branch(chat: Chat, name: str) -> str:
    chat.conversation.branch(name)
    return f"{name!r} is this point; /switch {name} returns to it"


def _switch(chat: Chat, name: str) -> str:
    chat.conversation.switch(name)
    return f"at {name!r}; {_whereabouts(chat)}"


def _image(chat: Chat, file: str) -> str:
    from lfm2_export.images.opening import open_image

    check_takes_images(chat.artifact)
    path, waiting = Path(file).expanduser(), chat.conversation.pictures
    waiting.append(picture := chat.look(open_image(path), str(path)))
    return f"{path.name}, {len(picture.embeddings)} tokens, goes with the next message{_others(len(waiting) - 1)}"


def _drop(chat: Chat, _: str) -> str:
    count = len(chat.conversation.pictures)
    chat.conversation.pictures = []
    return f"dropped {count} waiting picture{'' if count == 1 else 's'}"


def _others(count: int) -> str:
    return f", as {count} before it {'does' if count == 1 else 'do'}" if count else ""


def _save(chat: Chat, file: str) -> str:
    path = Path(file).expanduser()
    chat.conversation.save(path, chat.artifact, chat.force)
    return f"saved {path}; {_whereabouts(chat)}"


def _load(chat: Chat, file: str) -> str:
    path = Path(file).expanduser()
    chat.conversation.resume(path, chat.artifact)
    return f"loaded {path}; {_whereabouts(chat)}"


def _whereabouts(chat: Chat) -> str:
    session = chat.conversation.session
    return f"{session.position} of {session.window} tokens"


COMMANDS = {
    "/image": Command("FILE", "a picture for the next message", _image),
    "/drop": Command("", "drop the pictures that wait for it", _drop),
    "/rewind": Command("", "take back the last turn", _rewind),
    "/branch": Command("NAME", "name this point of the conversation", _branch),
    "/switch": Command("NAME", "go back to a named point", _switch),
    "/save": Command("FILE", "write the conversation and its state", _save),
    "/load": Command("FILE", "go on from such a file", _load),
    "/reset": Command("", "start over; the system prompt stays", _reset),
    "/help": Command("", "this list", _help),
    "/exit": Command("", "leave; Ctrl-D too", lambda chat, _: ""),  # the loop ends before it asks
}
