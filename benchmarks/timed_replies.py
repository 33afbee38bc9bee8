"""Whole replies with drafts beside plain decoding, at true shapes: the loop of `chat`, its text given beforehand.

Random weights say nothing worth copying, so the text is fixed and whoever samples draws it, after the usual search for
the likeliest token. Guesses are right as often as is asked for; or they come from lookup, on text that has nothing to
copy: of random tokens, and of a few tokens in random order, where something is always found and mostly wrong.
"""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Callable, Sequence

import numpy as np

from lfm2_export.chat.drafts import Drafts, Lookup, Source
from lfm2_export.chat.generation import generate
from lfm2_export.chat.sampling import greedy
from lfm2_export.runtimes.session import Session

_TOKENS = 128  # of a reply
_ACCEPTANCES = (0.5, 0.7, 0.8, 0.9, 0.95, 1.0)
_FEW = 8  # tokens to make text of that repeats itself without a pattern


class Rightly:
    """Guesses that are the text's own next tokens, each with the given probability, wrong otherwise."""

    def __init__(self, text: Sequence[int], start: int, rate: float, seed: int = 0) -> None:
        self._text, self._start, self._rate, self._random = text, start, rate, random.Random(seed)

    def __call__(self, seen: Sequence[int], most: int) -> list[int]:
        at = len(seen) - self._start
        return [token if self._random.random() < self._rate else token ^ 1 for token in self._text[at : at + most]]


def measure(session: Session, vocab: int, context: int, rounds: int) -> dict[str, object]:
    """How many times faster than plain decoding a reply is, turn by turn: medians of `rounds` pairs."""
    ids = np.random.default_rng(1).integers(vocab, size=context + _TOKENS).tolist()
    prompt, text = ids[:context], ids[context:]
    few = [ids[each] for each in np.random.default_rng(0).integers(_FEW, size=_TOKENS)]
    faster = {rate: _faster(session, prompt, text, rounds, _rightly(text, context, rate)) for rate in _ACCEPTANCES}
    return {
        "reply_tokens": _TOKENS,
        "context": context,
        "times_faster_by_acceptance": faster,
        "times_faster_with_nothing_to_copy": {
            "random tokens": _faster(session, prompt, text, rounds, Lookup),
            "a few tokens in random order": _faster(session, prompt, few, rounds, Lookup),
        },
    }


def _rightly(text: Sequence[int], start: int, rate: float) -> Callable[[], Source]:
    return lambda: Rightly(text, start, rate)


def _faster(
    session: Session, prompt: Sequence[int], text: Sequence[int], rounds: int, source: Callable[[], Source]
) -> float:
    ratios = []
    for number in range(rounds + 1):
        plain, drafted = (
            _seconds(session, prompt, text, None),
            _seconds(session, prompt, text, Drafts(source(), session.draft_cost)),
        )
        if number:  # the first is a warm-up
            ratios.append(plain / drafted)
    return round(statistics.median(ratios), 3)


def _seconds(session: Session, prompt: Sequence[int], text: Sequence[int], drafts: Drafts | None) -> float:
    def sampler(logits: np.ndarray, seen: Sequence[int]) -> int:
        greedy(logits, seen)
        return text[len(seen) - len(prompt)]

    session.reset()
    tokens = generate(session, prompt, (), len(text), sampler, drafts)
    next(tokens)  # the prompt and the first step
    start = time.perf_counter()
    rest = list(tokens)
    seconds = time.perf_counter() - start
    assert rest == list(text[1:])
    return seconds
