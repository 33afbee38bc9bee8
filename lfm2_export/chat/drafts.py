"""Guesses at the next tokens, for a session to verify several of them in one call (arXiv:2211.17192).

A draft comes from what has been said (`Lookup`) or from a smaller model (`SmallerModel`); `Drafts` decides how long it
is. Whoever guesses, the text is what it would be without: a guess counts when it is what the sampler draws from the
verified logits, which is rejection sampling with a draft that is certain of itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from lfm2_export.runtimes.session import DraftCost, Session


class Source(Protocol):
    """Whoever guesses: up to `most` tokens that may follow all that was `seen`, fewer or none where it has no idea."""

    def __call__(self, seen: Sequence[int], most: int) -> list[int]: ...


_RUNS = (8, 4, 2)  # tokens that are looked up together
_DIFFERENCE = 8  # tokens behind which a copy and its original may agree again


class Lookup:
    """What followed the last tokens the last time they stood in this order: for text that repeats what was said.

    The longest run of last tokens that occurred before is taken, of 8, 4 or 2. Where none did, what the last draft
    copied may go on behind a difference, such as another name or value: the last token alone is looked for among the
    next ones of the original. Where less than is asked for has followed, that is guessed to come again and again.
    """

    def __init__(self) -> None:
        self._ends: dict[tuple[int, ...], int] = {}  # run of tokens → where its last occurrence ends
        self._indexed: list[int] = []
        self._of: Sequence[int] = ()  # the very sequence, which grows from call to call
        self._original = self._copy = 0  # from where and to where the last draft copied; the text itself, at first

    def __call__(self, seen: Sequence[int], most: int) -> list[int]:
        """Look the last tokens up, and remember all runs that something follows."""
        self._index(seen)
        start = self._behind_run(seen) or self._behind_difference(seen)
        if start is None:
            return []
        self._original, self._copy = start, len(seen)
        period = len(seen) - start
        return [seen[start + at % period] for at in range(most)]

    def _behind_run(self, seen: Sequence[int]) -> int | None:
        runs = (self._ends.get(tuple(seen[-size:])) for size in _RUNS if size < len(seen))
        return next((end for end in runs if end is not None), None)

    def _behind_difference(self, seen: Sequence[int]) -> int | None:
        while self._copy < len(seen) and seen[self._original] == seen[self._copy]:
            self._original += 1
            self._copy += 1
        if len(seen) - self._copy > _DIFFERENCE:
            return None
        following = range(self._original + 1, min(self._original + 1 + _DIFFERENCE, len(seen) - 1))
        return next((at + 1 for at in following if seen[at] == seen[-1]), None)

    def _index(self, seen: Sequence[int]) -> None:
        known = len(self._indexed)
        if seen is not self._of and list(seen[:known]) != self._indexed:  # it went back, or is another conversation
            self._ends.clear()
            self._indexed.clear()
            self._original = self._copy = known = 0
        for end in range(max(known, 1), len(seen)):  # the run that ends with the last token has nothing behind it yet
            for size in _RUNS:
                if size <= end:
                    self._ends[tuple(seen[end - size : end])] = end
        self._indexed.extend(seen[known:])
        self._of = seen


class SmallerModel:
    """What a smaller model of the same vocabulary would say, always its likeliest token.

    Its session takes only tokens that have been said: what it guesses it verifies behind them, and never keeps.
    """

    def __init__(self, session: Session) -> None:
        self._session = session
        self._fed: list[int] = []

    def __call__(self, seen: Sequence[int], most: int) -> list[int]:
        """Guess one token after the other."""
        session = self._session
        known = len(self._fed)
        if session.position != known or list(seen[:known]) != self._fed or known >= len(seen):
            session.reset()
            known = 0
        most = min(most, session.verifies - 1, session.window - len(seen))
        if most < 1:
            return []
        if len(seen) - known > session.verifies - most:
            session.prefill(seen[known:-1])
            known = len(seen) - 1
        new, draft = list(seen[known:]), list[int]()
        while len(draft) < most:
            draft.append(int(np.argmax(session.verify([*new, *draft])[-1])))
        session.keep(len(new))
        self._fed = list(seen)
        return draft


_PRIOR, _MEMORY = 0.65, 0.1  # acceptance before anything is known, and the weight of each guess that is judged
_CREDIT, _EARNED, _MOST = 2.0, 0.005, 8.0  # steps that drafts may lose: at first, more with each call, and in all
_SHORT = 2  # guesses where drafts have lost: what those cost differs least from one CPU to another


@dataclass
class Drafts:
    """A source, how long its drafts are, and what became of them.

    The length is the one with the most tokens for the time, by the share of guesses that were right lately. Drafts pay
    for themselves, out of a credit that right guesses fill up again: however wrong a source is, a reply takes no more
    than two steps and one in 200 longer, and one that is right half the time is not given up for a few misses. While
    less is left than there was at first, drafts are short.
    """

    source: Source
    cost: DraftCost = Session.draft_cost
    drafted: int = 0
    accepted: int = 0
    calls: int = 0  # that verified a draft, and single steps
    single_steps: int = 0
    single_seconds: float = 0.0
    acceptance: float = field(default=_PRIOR, repr=False)
    credit: float = field(default=_CREDIT, repr=False)  # steps

    def propose(self, seen: Sequence[int], most: int) -> list[int]:
        """Return guesses at what follows, at most that many; none that there is no credit for. Once for each call."""
        self.credit = min(_MOST, self.credit + _EARNED)
        if self.credit < _CREDIT:
            most = min(most, _SHORT)
        length = best_length(self.acceptance, most, self.cost) or min(most, _SHORT)
        return self.source(seen, length) if length and self.cost.of(length) <= self.credit else []

    def judged(self, drafted: int, accepted: int) -> None:
        """Take note of how many guesses of a draft were right. Behind the first wrong one none is judged."""
        self.calls += 1
        self.drafted += drafted
        self.accepted += accepted
        self.credit = min(_MOST, self.credit + accepted - self.cost.of(drafted))
        for right in [1.0] * accepted + [0.0] * (accepted < drafted):
            self.acceptance += _MEMORY * (right - self.acceptance)


def best_length(acceptance: float, most: int, cost: DraftCost) -> int:
    """Return how many guesses, each right with that probability, give the most tokens for the time; 0 for none."""
    best, length, expected = 1.0, 0, 1.0
    for guesses in range(1, most + 1):
        expected += acceptance**guesses
        gain = expected / (1 + cost.of(guesses))
        if gain > best:
            best, length = gain, guesses
    return length
