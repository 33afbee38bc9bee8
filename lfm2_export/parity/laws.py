"""The state laws: where hybrids break. Each takes a session of the artifact and says how far it is from the law.

Laws that are exact by nature (reset, snapshot, window edge) allow no difference at all; those that compare two
orders of the same arithmetic (chunks, padding, the other form) allow the recipe's lowering error.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from lfm2_export.checkpoint.config import LFM2Config
from lfm2_export.errors import WindowExceededError
from lfm2_export.evaluate.metrics import relative_error, worst
from lfm2_export.evaluate.text import random_ids
from lfm2_export.model.state import is_cache
from lfm2_export.parity.effort import LEFT_OUT
from lfm2_export.runtimes.session import Session, Snapshot


class OtherForm(NamedTuple):
    """The same model lowered in the form that the artifact is not, through its own runtime; or why there is none."""

    logits: np.ndarray | None  # [steps, vocab], one row for each of the law's tokens
    reason: str | None = None


@dataclass(frozen=True)
class LawContext:
    """The things a law may use: the artifact's session, the model's shape, text, and what the other form says."""

    session: Session
    config: LFM2Config
    tokens: tuple[int, ...]  # at least 16, from the evaluation text
    tolerance: float  # the recipe's lowering error
    other_form: OtherForm  # what the artifact's other form says
    # whether the window's edge is reached token by token; else from a state of zeros, where that can be given
    fills: bool = True
    before: tuple[int, ...] = ()  # fed before those in one call, so that a sliding window ends among them

    def begin(self) -> None:
        """Begin a conversation anew, up to where the tokens go on."""
        self.session.reset()
        if self.before:
            self.session.prefill(self.before)


class LawResult(NamedTuple):
    """A law's verdict: its error against its limit, or the reason it does not apply."""

    name: str
    error: float | None
    limit: float
    reason: str | None = None

    @property
    def passed(self) -> bool:
        return self.error is not None and self.error <= self.limit


def state_laws(context: LawContext) -> Iterator[LawResult]:
    """Yield the result of every law, in a fixed order."""
    for law in (_reset, _chunks, _padding, _window_edge, _forms, _snapshot, _verify, _rejected):
        context.session.reset()
        yield law(context)


def _reset(at: LawContext) -> LawResult:
    """A second conversation is the first one, bit for bit, whatever came between."""
    first = _talk(at.session, at.tokens)
    at.begin()
    _talk(at.session, random_ids(at.config, 17, seed=3))
    at.session.reset()
    return LawResult("reset", _distance(_talk(at.session, at.tokens), first), 0.0)


def _chunks(at: LawContext) -> LawResult:
    """Prefill in chunks = prefill whole, at every split size up to past the conv width."""
    at.begin()
    whole = at.session.prefill(at.tokens)
    errors = []
    for size in range(1, at.config.conv_L_cache + 2):
        at.begin()
        for start in range(0, len(at.tokens), size):
            logits = at.session.prefill(at.tokens[start : start + size])
        errors.append(relative_error(logits, whole))
    return LawResult("chunked prefill", worst(errors), at.tolerance)


def _padding(at: LawContext) -> LawResult:
    """A padded row touches neither the logits nor the state."""
    if not at.session.pads:
        return LawResult("padded prefill", None, at.tolerance, "this form's signature takes no padding")
    at.begin()
    plain = _pieces(at.session, at.tokens, None)
    at.begin()
    padded = _pieces(at.session, at.tokens, 16)
    return LawResult("padded prefill", _distance(padded, plain), at.tolerance)


def _window_edge(at: LawContext) -> LawResult:
    """Decode runs to the window's last column; the step past it is refused and changes nothing."""
    session = at.session
    if not at.fills and not session.has_state:
        return LawResult("window edge", None, 0.0, LEFT_OUT)
    ids = random_ids(at.config, session.window, seed=5)
    if at.fills:
        session.prefill(ids[:-1])
    else:
        session.restore(_zeros(session, session.window - 1))
    last = session.decode(ids[-1])
    refused = False
    try:
        session.decode(0)
    except WindowExceededError:
        refused = True
    finite = bool(np.isfinite(last).all())
    return LawResult("window edge", 0.0 if refused and finite and session.position == session.window else 1.0, 0.0)


def _zeros(session: Session, position: int) -> Snapshot:
    """A state of that many tokens that were never fed."""
    session.prefill([0])
    shapes = {name: values.shape for name, values in session.state().tensors.items()}
    columns = {name: (*shape[:2], position, *shape[3:]) if is_cache(name) else shape for name, shape in shapes.items()}
    return Snapshot(position, {name: np.zeros(shape, dtype=np.float32) for name, shape in columns.items()})


def _forms(at: LawContext) -> LawResult:
    """Explicit state = state in buffers: this artifact against the other form of the same model, lowered as well."""
    other = at.other_form
    if other.logits is None:
        return LawResult("explicit = resident", None, at.tolerance, other.reason)
    at.begin()
    ours = np.stack([at.session.decode(token) for token in at.tokens])
    return LawResult("explicit = resident", relative_error(ours, other.logits), at.tolerance)


def _snapshot(at: LawContext) -> LawResult:
    """A saved and restored state goes on exactly: rewind and branch."""
    if not at.session.has_state:
        return LawResult("snapshot", None, 0.0, f"{at.session.runtime} keeps the state of this form to itself")
    half = len(at.tokens) // 2
    at.begin()
    at.session.prefill(at.tokens[:half])
    saved = at.session.state()
    first = _talk(at.session, at.tokens[half:])
    at.session.restore(saved)
    return LawResult("snapshot", _distance(_talk(at.session, at.tokens[half:]), first), 0.0)


def _verify(at: LawContext) -> LawResult:
    """A draft verified has the logits of its tokens one by one, and leaves, once kept, the state that they leave."""
    limit = at.tolerance
    if not at.session.verifies:
        return LawResult("verified = decoded", None, limit, _no_drafts(at.session))
    start, drafts = _drafts(at)
    at.begin()
    at.session.prefill(start)
    expected = [at.session.decode(token) for draft in drafts for token in draft]
    state = _state(at.session)
    at.begin()
    at.session.prefill(start)
    actual: list[np.ndarray] = []
    for draft in drafts:
        actual += list(at.session.verify(draft))
        at.session.keep(len(draft))
    return LawResult("verified = decoded", _distance([*actual, *_state(at.session)], [*expected, *state]), limit)


def _rejected(at: LawContext) -> LawResult:
    """What is verified and not kept never happened, bit for bit.

    A draft of which nothing is kept is as none at all. Where a part is kept, the rest might have been any other tokens:
    as many of them, because a kernel may sum otherwise for more rows, as it may for the chunks of a prompt.
    """
    session = at.session
    if not session.verifies:
        return LawResult("rejected = never fed", None, 0.0, _no_drafts(session))
    start, drafts = _drafts(at)
    at.begin()
    session.prefill(start)
    most = min(session.verifies, session.window - session.position)
    some, others = (random_ids(at.config, most, seed=seed) for seed in (9, 10))
    begun, after = session.state(), at.tokens[-4:]
    plain = _goes_on(session, after)
    errors = [_distance(_kept(session, begun, some, 0, after), plain)]
    for kept in range(1, min(len(drafts[-1]), most - 1) + 1):
        with_some, with_others = (
            _kept(session, begun, (*drafts[-1][:kept], *wrong[kept:]), kept, after) for wrong in (some, others)
        )
        errors.append(_distance(with_some, with_others))
    return LawResult("rejected = never fed", worst(errors), 0.0)


def _kept(
    session: Session, begun: Snapshot, draft: tuple[int, ...], count: int, after: tuple[int, ...]
) -> list[np.ndarray]:
    """A conversation from a state on that keeps the first tokens of a draft: their logits, and how it goes on."""
    session.restore(begun)
    rows = session.verify(draft)
    session.keep(count)
    return [*rows[:count], *_goes_on(session, after)]


def _drafts(at: LawContext) -> tuple[tuple[int, ...], list[tuple[int, ...]]]:
    """Tokens to begin with, and drafts of 1, 2 and so on behind them, as long as text and artifact allow."""
    start, drafts = len(at.tokens) // 2, []
    size, begin = 1, start
    while begin + size <= len(at.tokens) and size <= at.session.verifies:
        drafts.append(at.tokens[begin : begin + size])
        begin, size = begin + size, size + 1
    return at.tokens[:start], drafts


def _goes_on(session: Session, tokens: tuple[int, ...]) -> list[np.ndarray]:
    """The state if it shows, logits of further steps, and the state behind them."""
    return [*_state(session), *(session.decode(token) for token in tokens), *_state(session)]


def _no_drafts(session: Session) -> str:
    return f"{session.runtime} verifies no drafts with this artifact"


def _state(session: Session) -> list[np.ndarray]:
    return list(session.state().tensors.values()) if session.has_state else []


def _talk(session: Session, tokens: tuple[int, ...]) -> list[np.ndarray]:
    """A prefill of most tokens and a decode of the last four; logits of each call, then the state if it shows."""
    logits = [session.prefill(tokens[:-4]), *(session.decode(token) for token in tokens[-4:])]
    return logits + _state(session)


def _pieces(session: Session, tokens: tuple[int, ...], pad_to: int | None) -> list[np.ndarray]:
    """Chunks of 1, 2, 3, 5 and the rest; then two steps of decode, which read whatever state the padding left."""
    logits, start = [], 0
    for size in (1, 2, 3, 5, len(tokens) - 13):
        logits.append(session.prefill(tokens[start : start + size], pad_to=pad_to and max(pad_to, size)))
        start += size
    logits += [session.decode(token) for token in tokens[start:]]
    return logits + _state(session)


def _distance(actual: list[np.ndarray], expected: list[np.ndarray]) -> float:
    return worst([relative_error(a, b) for a, b in zip(actual, expected, strict=True)])
