"""A chat over a session: the template rendered, only what is new fed, the reply streamed as text.

Where the state is explicit, a turn can be taken back, a place in the conversation named and returned to, and all of it
put into a file; each exactly, because the state itself goes back and nothing is computed anew.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from lfm2_export.artifact.folder import Artifact
from lfm2_export.chat.drafts import Drafts, Source
from lfm2_export.chat.generation import generate
from lfm2_export.chat.incremental_snapshot import IncrementalSnapshot
from lfm2_export.chat.overflow import OnFull, kept, reserved, without_oldest_turn
from lfm2_export.chat.prompt import Message, Prompt, for_file, for_template, from_file, pictures_of, said
from lfm2_export.chat.sampling import Sampler, greedy
from lfm2_export.chat.saved_state import load_state, save_state
from lfm2_export.chat.speed import Speed
from lfm2_export.checkpoint.tokenizer import ChatTokenizer
from lfm2_export.errors import StateFileError, UsageError
from lfm2_export.files import sweep
from lfm2_export.images.pictures import ImageToken, with_pictures
from lfm2_export.images.viewing import Picture
from lfm2_export.runtimes.session import Session, Snapshot


@dataclass(frozen=True)
class Place:
    """A point between two turns: what had been said, what the session had seen, its state, and the point before."""

    messages: tuple[Message, ...]
    prompt: Prompt
    snapshot: IncrementalSnapshot
    before: Place | None  # where the last turn began


@dataclass
class Conversation:
    """Turns so far and what of them the session has already seen."""

    session: Session
    tokenizer: ChatTokenizer
    messages: list[Message] = field(default_factory=list)
    tools: list[Any] | None = None
    sampler: Sampler = greedy
    source: Source | None = None  # of drafts
    on_full: OnFull = "stop"
    image_token: ImageToken | None = None  # of a model that takes images
    pictures: list[Picture] = field(default_factory=list)  # which go with the next message
    speed: Speed = field(default_factory=Speed)
    _fed: Prompt = field(default_factory=Prompt)  # what is behind the session's state
    _snapshot: IncrementalSnapshot | None = None  # the last one that the session's state goes on from
    _before: Place | None = None  # where the last turn began
    _prefix: Place | None = None  # the system prompt alone
    _branches: dict[str, Place] = field(default_factory=dict)

    def reset(self) -> None:
        """Start over; a system message stays, and so do the branches. Pictures that wait for a message are dropped."""
        self.messages = [message for message in self.messages if message["role"] == "system"]
        self.pictures, self._before = [], None
        self._forget()

    def reply(self, text: str, limit: int) -> Iterator[str]:
        """Say `text` as the user, with the `pictures` that wait, and stream the answer, at most `limit` tokens.

        A full window is a WindowExceededError or, with `on_full` "forget", costs the oldest turns.

        A turn that is refused, or abandoned halfway, has not taken place: its pictures wait again.
        """
        start = self._here() if self.session.has_state else None
        before, shown = list(self.messages), self.pictures
        self.messages.append(said(text, shown))
        self.pictures = []
        try:
            yield from self._answer(limit, shown)
        except BaseException:
            self.pictures = shown
            if start is None:
                self.messages = before
            else:
                self._return_to(start)
            raise
        self._before = start

    def rewind(self) -> None:
        """Take back the last turn: messages and state are what they were before it, to the bit.

        UsageError when no turn is left, or when form or runtime keep the state to themselves.
        """
        self.need_state()
        if self._before is None:
            raise UsageError("no turn to take back: this is where the conversation started or was loaded")
        self._return_to(self._before)

    def branch(self, name: str) -> None:
        """Name this point of the conversation; a name used before moves here."""
        self.need_state()
        self._branches[name] = self._here()

    def switch(self, name: str) -> None:
        """Go back (or over) to a named point; where one was is lost unless it has a name too."""
        self.need_state()
        if name not in self._branches:
            raise UsageError(f"no branch {name!r}; known: {', '.join(self.branches) or 'none yet'}")
        self._return_to(self._branches[name])

    @property
    def branches(self) -> list[str]:
        """Names given so far, sorted."""
        return sorted(self._branches)

    def save(self, path: Path, artifact: Artifact, force: bool = False) -> None:
        """Write the conversation and its state for `resume`; see `save_state`. A sampler's randomness is not in it."""
        self.need_state()
        snapshot, pictures = self.session.state(), [picture.embeddings for picture in pictures_of(self.messages)]
        messages = for_file(self.messages)
        save_state(
            path, snapshot, artifact, self._fed.tokens, force, messages=messages, tools=self.tools, pictures=pictures
        )

    def resume(self, path: Path, artifact: Artifact) -> None:
        """Go on where `save` left off, in this process or another; see `load_state`. Branches stay."""
        self.need_state()
        saved = load_state(path, artifact)
        messages = from_file(saved.messages, saved.pictures)
        self._start_from(saved.snapshot, Prompt(saved.tokens, pictures_of(messages)))
        self.messages, self.pictures = messages, []
        self.tools = None if saved.tools is None else list(saved.tools)

    def cache_prefix(self, path: Path, artifact: Artifact) -> None:
        """Start from the system prompt's state: read from `path`, or computed and written there if it is missing.

        StateFileError when the file is not this prompt's; UsageError when there is no system prompt.
        """
        self.need_state()
        tokens = self._prefix_tokens()
        prefix = Prompt(tuple(tokens))
        if path.exists():
            sweep(path.parent)  # of the run that wrote it, should it have been killed
            saved = load_state(path, artifact)
            if list(saved.tokens) != tokens:
                raise StateFileError(f"{path}: caches another system prompt; delete it or name another file")
            self._start_from(saved.snapshot, prefix)
        else:
            self.session.reset()
            self.session.prefill(tokens)
            snapshot = self.session.state()
            save_state(path, snapshot, artifact, tokens)
            self._start_from(snapshot, prefix)
        self._prefix = self._here()

    def need_state(self) -> None:
        """Raise UsageError when the artifact's form, or the runtime, hides the state."""
        if not self.session.has_state:
            raise UsageError(
                f"{self.session.runtime} keeps the state of this artifact to itself; this needs --form explicit at "
                "export and executorch or onnxruntime as the runtime"
            )

    def _answer(self, limit: int, shown: Sequence[Picture]) -> Iterator[str]:
        """The assistant's turn. Whatever happens, `_fed` says what the session has seen."""
        wanted, forgotten = self._wanted(limit)
        known = self._known(wanted)
        before, prompt = wanted.tokens[:known], wanted.tokens[known:]
        images = wanted.embeddings_behind(known, self._image_token)
        stream = self.tokenizer.stream()
        answer: list[str] = []
        chosen: list[int] = []

        def choose(logits: np.ndarray, seen: Sequence[int]) -> int:
            # not `seen`: a repetition penalty must not depend on what happened to be cached
            chosen.append(self.sampler(logits, [*wanted.tokens, *chosen]))
            return chosen[-1]

        drafts = None if self.source is None else Drafts(self.source, self.session.draft_cost)
        self.speed = Speed(len(prompt), cached_tokens=known, forgotten_turns=forgotten)
        self.speed.images, self.speed.image_seconds = len(shown), sum(picture.seconds for picture in shown)
        start = time.perf_counter()
        try:
            for token in generate(self.session, prompt, self.tokenizer.eos_ids, limit, choose, drafts, before, images):
                if not self.speed.prompt_seconds:
                    self.speed.prompt_seconds = time.perf_counter() - start
                self.speed.new_tokens += 1
                if piece := stream.step(token):
                    answer.append(piece)
                    yield piece
        finally:
            whole = wanted._replace(tokens=(*wanted.tokens, *chosen))
            self._fed = whole.cut(self.session.position, self._image_token)
        self.speed.new_seconds = time.perf_counter() - start - self.speed.prompt_seconds
        if drafts is not None:
            self.speed.drafted_tokens, self.speed.accepted_tokens = drafts.drafted, drafts.accepted
            self.speed.single_tokens, self.speed.single_seconds = drafts.single_steps, drafts.single_seconds
        self.messages.append({"role": "assistant", "content": "".join(answer)})

    @property
    def _image_token(self) -> int | None:
        return None if self.image_token is None else self.image_token.id

    def _wanted(self, limit: int) -> tuple[Prompt, int]:
        """The prompt, and how many of the oldest turns were forgotten to make room for it and its reply."""
        wanted, forgotten = self._rendered(), 0
        window = self.session.window
        if self.on_full == "stop" or len(wanted.tokens) + reserved(window, limit) <= window:
            return wanted, forgotten
        while len(wanted.tokens) > kept(window) and (later := without_oldest_turn(self.messages)) is not None:
            self.messages, forgotten = later, forgotten + 1
            wanted = self._rendered()
        return wanted, forgotten

    def _rendered(self) -> Prompt:
        pictures = pictures_of(self.messages)
        text = self.tokenizer.render(for_template(self.messages), tools=self.tools)
        if self.image_token is not None:
            text = with_pictures(text, [picture.text for picture in pictures], self.image_token.text)
        return Prompt(tuple(self.tokenizer.encode(text)), pictures)

    def _known(self, wanted: Prompt) -> int:
        """Bring the session to the latest known state that the prompt goes on from; how many tokens it has seen."""
        fed = self._fed.tokens
        if not (fed and self.session.position == len(fed) and self._fed.begins(wanted)):
            known = next((p for p in self._places() if p.prompt.tokens and p.prompt.begins(wanted)), None)
            if known is None:
                self._forget()
            else:
                self._restore(known)
        return len(self._fed.tokens)

    def _places(self) -> Iterator[Place]:
        """Where the session could go back to, latest first."""
        place = self._before
        while place is not None:
            yield place
            place = place.before
        if self._prefix is not None:
            yield self._prefix

    def _here(self) -> Place:
        if self._snapshot is None or self._snapshot.position != self.session.position:
            self._snapshot = IncrementalSnapshot.after(self._snapshot, self.session.state())
        return Place(tuple(self.messages), self._fed, self._snapshot, self._before)

    def _return_to(self, place: Place) -> None:
        self._restore(place)
        self.messages = list(place.messages)
        self._before = place.before

    def _restore(self, place: Place) -> None:
        self.session.restore(place.snapshot.snapshot())
        self._fed, self._snapshot = place.prompt, place.snapshot

    def _start_from(self, snapshot: Snapshot, prompt: Prompt) -> None:
        self.session.restore(snapshot)
        self._fed, self._snapshot, self._before = prompt, IncrementalSnapshot.after(None, snapshot), None

    def _forget(self) -> None:
        self.session.reset()
        self._fed, self._snapshot = Prompt(), None

    def _prefix_tokens(self) -> list[int]:
        """Of the system prompt and tools, as far as every conversation begins with them."""
        system = [message for message in self.messages if message["role"] == "system"]
        if not system and not self.tools:
            raise UsageError("no system prompt to cache; give one with --system")
        alone = self.tokenizer.render(system, tools=self.tools, add_generation_prompt=False)
        asked = self.tokenizer.render([*system, {"role": "user", "content": "?"}], tools=self.tools)
        prefix, prompt = self.tokenizer.encode(alone), self.tokenizer.encode(asked)
        if not Prompt(tuple(prefix)).begins(Prompt(tuple(prompt))):
            raise UsageError("this chat template does not put the system prompt first, so it cannot be cached")
        return prefix
