"""What every runtime makes of an artifact: one conversation at a time, behind the same few calls."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from lfm2_export.errors import UsageError, WindowExceededError


@dataclass(frozen=True)
class Snapshot:
    """A conversation's state, copied out: enough to go on exactly from here in a session of the same artifact.

    `tensors` follow `model/state.py`'s names and shapes (batch 1, fp32), keys and values of the whole context cut to
    `position` columns: the rest of the window is not state.
    """

    position: int
    tensors: dict[str, np.ndarray] = field(repr=False)


class Check(NamedTuple):
    """What a session tried on its device when it was opened: an error and its limit, or why it is not held to it."""

    name: str
    error: float
    limit: float
    reason: str | None = None


class DraftCost(NamedTuple):
    """What verifying a draft costs beyond a decode step, in steps (measured: docs/speculation.md)."""

    draft: float  # however long it is
    guess: float
    block_rows: int
    block: float  # each further block of so many rows

    def of(self, guesses: int) -> float:
        """Return what so many guesses cost."""
        return self.draft + self.guess * guesses + self.block * (guesses // self.block_rows)


class Session(ABC):
    """A loaded artifact (or the eager model) and one conversation's state. Batch 1.

    Logits are `[vocab] float32` of the last valid token. A call that would pass the window raises
    WindowExceededError and leaves the state as it was.

    `verify` asks what would come after each of several tokens, in one call, which costs little more than a step; `keep`
    then takes as many of them into the conversation as are right. What is not kept never happened: every state tensor
    is to the bit what it would be.
    """

    runtime: str  # name for reports: "eager", "executorch", "onnxruntime", …
    version: str  # of the runtime library
    window: int  # tokens
    pads: bool = False  # whether prefill accepts `pad_to`
    verifies: int = 0  # the most tokens of a `verify`; 0 where there is none
    draft_cost: DraftCost = DraftCost(0.45, 0.02, 8, 0.9)  # of XNNPACK's integer products
    has_state: bool = True  # whether state() and restore() exist (a resident form hides its state)
    takes_images: bool = False  # whether encode() and prefill_with_images() exist
    checks: tuple[Check, ...] = ()  # made when it was opened
    notes: tuple[str, ...] = ()  # what a report should say of how it computes

    @property
    @abstractmethod
    def position(self) -> int:
        """The number of tokens already seen."""

    @abstractmethod
    def prefill(self, tokens: Sequence[int], pad_to: int | None = None) -> np.ndarray:
        """Go on with a chunk of at least one token; `pad_to` right-pads the call to that many rows.

        Raises UsageError for `pad_to` where `pads` is False.
        """

    def decode(self, token: int) -> np.ndarray:
        """Go on with a single token."""
        return self.prefill([token])

    def encode(self, patches: np.ndarray, rows: int, columns: int) -> np.ndarray:
        """Return the embeddings of an image, `[places, H] float32`, of its `patches [rows·columns, values] float32`.

        UsageError where `takes_images` is False.
        """
        raise UsageError(f"{self.runtime} takes no images with this artifact")

    def prefill_with_images(self, tokens: Sequence[int], images: np.ndarray) -> np.ndarray:
        """Go on as `prefill` does; what stands for images among the tokens is `images [places, H]`, in their order.

        UsageError where `takes_images` is False, or for more or fewer places.
        """
        raise UsageError(f"{self.runtime} takes no images with this artifact")

    def verify(self, tokens: Sequence[int]) -> np.ndarray:
        """Return the logits after each of the tokens, `[T, vocab] float32`. They are not part of the conversation yet.

        UsageError where `verifies` is 0, or for more tokens than that.
        """
        raise UsageError(f"{self.runtime} cannot verify drafts with this artifact; export with options.speculation")

    def keep(self, count: int) -> None:
        """Take the first `count` tokens of the `verify` before this call into the conversation; let go of the others.

        Any other call lets go of all of them. UsageError for more than there are.
        """
        check_kept(count, 0)

    def read(self, tokens: Sequence[int]) -> np.ndarray:
        """Go on with tokens whose logits are all wanted; return those after each, `[T, vocab] float32`.

        In as few calls as the artifact allows: as drafts where it verifies those, else token by token.
        """
        if not self.verifies:
            return np.stack([self.decode(token) for token in tokens])
        rows = []
        for start in range(0, len(tokens), self.verifies):
            draft = tokens[start : start + self.verifies]
            rows.append(self.verify(draft))
            self.keep(len(draft))
        return np.concatenate(rows)

    @abstractmethod
    def reset(self) -> None:
        """Forget everything: the next call starts a new conversation."""

    def state(self) -> Snapshot:
        """Copy the state out. UsageError where `has_state` is False."""
        raise UsageError(f"{self.runtime} keeps the state of this form to itself")

    def restore(self, snapshot: Snapshot) -> None:
        """Go back (or on) to a state copied out earlier, by this session or another of the same artifact.

        UsageError where `has_state` is False, or for a snapshot of another model or window.
        """
        self.state()  # refuses

    def probes(self) -> dict[str, np.ndarray]:
        """Return what the last call's points held, by point, fp32 `[…, width]`, where the method outputs them.

        Rows that only the last token has may be fewer. Empty for an ordinary artifact.
        """
        return {}


def check_room(position: int, tokens: int, window: int, vocab: int, ids: Sequence[int]) -> None:
    """Refuse what no session can do, before it reaches a library: a bad shape or id aborts some of them outright.

    Raises UsageError for an empty chunk or an id outside the vocabulary, WindowExceededError past the window.
    """
    if tokens < 1:
        raise UsageError("a chunk needs at least one token")
    if position + tokens > window:
        raise WindowExceededError(
            f"{position} + {tokens} tokens do not fit the window of {window}; reset, or export with a larger --window"
        )
    for token in ids:
        if not 0 <= token < vocab:
            raise UsageError(f"token id {token} is outside the vocabulary of {vocab}")


def check_draft(tokens: int, most: int) -> None:
    """Refuse a `verify` of more tokens than a call may have. Raises UsageError."""
    if tokens > most:
        raise UsageError(f"{tokens} tokens to verify; this artifact verifies up to {most} at once")


def check_kept(count: int, verified: int) -> None:
    """Refuse to keep more tokens than the call before has verified. Raises UsageError."""
    if not 0 <= count <= verified:
        raise UsageError(f"{count} tokens to keep, of {verified} that were verified")


def check_snapshot(snapshot: Snapshot, shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Refuse a snapshot that does not fit a session with state of these shapes (caches at their full window).

    Raises UsageError for a position past the window, or a tensor missing, extra or of another shape.
    """
    from lfm2_export.model.state import is_cache  # torch: describing a runtime must not load it

    if snapshot.tensors.keys() != shapes.keys():
        raise UsageError("the snapshot is of another model: its state tensors have other names")
    for name, shape in shapes.items():
        wanted = (*shape[:2], snapshot.position, *shape[3:]) if is_cache(name) else shape
        fits = not is_cache(name) or snapshot.position <= shape[2]
        if not fits or snapshot.tensors[name].shape != wanted:
            raise UsageError(
                f"the snapshot does not fit: {name} is {snapshot.tensors[name].shape}, the window is {shape}"
            )
