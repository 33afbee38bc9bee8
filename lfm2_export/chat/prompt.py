"""What a model is given: tokens, and the pictures that some of them stand for; and how messages hold pictures.

A message with pictures has a list of parts as its content, as chat templates expect: `{"type": "image", …}` for each
picture, then `{"type": "text", "text": …}`. In memory an image's part holds the `Picture`; in a file the text that
stands for it, with its embeddings beside.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from lfm2_export.images.viewing import Picture

Message = dict[str, Any]
_PICTURE = "picture"


class Prompt(NamedTuple):
    """Tokens, and the pictures that some of them stand for, in order."""

    tokens: tuple[int, ...] = ()
    pictures: tuple[Picture, ...] = ()

    def begins(self, whole: Prompt) -> bool:
        """Return whether `whole` goes on from this, with at least one token more."""
        longer = len(self.tokens) < len(whole.tokens) and whole.tokens[: len(self.tokens)] == self.tokens
        return longer and whole.pictures[: len(self.pictures)] == self.pictures

    def cut(self, count: int, image_token: int | None) -> Prompt:
        """Return its first `count` tokens, with every picture that begins among them."""
        tokens = self.tokens[:count]
        left, kept = _places(tokens, image_token), list[Picture]()
        for picture in self.pictures:
            if left > 0:
                kept.append(picture)
            left -= len(picture.embeddings)
        return Prompt(tokens, tuple(kept))

    def embeddings_behind(self, count: int, image_token: int | None) -> np.ndarray | None:
        """Return the rows `[places, H]` that belong behind its first `count` tokens; None where there are none."""
        if not self.pictures:
            return None
        rows = np.concatenate([picture.embeddings for picture in self.pictures])
        behind = rows[_places(self.tokens[:count], image_token) :]
        return behind if len(behind) else None


def _places(tokens: Sequence[int], image_token: int | None) -> int:
    return 0 if image_token is None else tokens.count(image_token)


def said(text: str, pictures: Sequence[Picture] = ()) -> Message:
    """Return a user's message: pictures, then text."""
    if not pictures:
        return {"role": "user", "content": text}
    shown = [{"type": "image", _PICTURE: picture} for picture in pictures]
    return {"role": "user", "content": [*shown, {"type": "text", "text": text}]}


def pictures_of(messages: Iterable[Message]) -> tuple[Picture, ...]:
    """Return the pictures of all messages, in order."""
    return tuple(part[_PICTURE] for message in messages for part in _images(message))


def for_template(messages: Iterable[Message]) -> list[Message]:
    """Return the same messages as a chat template takes them: plain JSON values."""
    return [_with_images(message, [{"type": "image"} for _ in _images(message)]) for message in messages]


def for_file(messages: Iterable[Message]) -> list[Message]:
    """Return the same messages as plain JSON values, in which a picture is the text that stands for it."""
    return [
        _with_images(message, [{"type": "image", "text": part[_PICTURE].text} for part in _images(message)])
        for message in messages
    ]


def from_file(messages: Iterable[Message], embeddings: Sequence[np.ndarray]) -> list[Message]:
    """Return what `for_file` was given, whose pictures' `embeddings` these are, in order."""
    rest = iter(embeddings)
    return [
        _with_images(
            message, [{"type": "image", _PICTURE: Picture(part["text"], next(rest))} for part in _images(message)]
        )
        for message in messages
    ]


def _images(message: Message) -> Iterator[Message]:
    content = message.get("content")
    return (part for part in content if _is_image(part)) if isinstance(content, list) else iter(())


def _is_image(part: Any) -> bool:
    return isinstance(part, dict) and part.get("type") == "image"


def _with_images(message: Message, images: list[Message]) -> Message:
    """The message with other parts for its images."""
    if not images:
        return message
    rest = iter(images)
    return message | {"content": [next(rest) if _is_image(part) else part for part in message["content"]]}
