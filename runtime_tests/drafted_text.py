"""A text to draft, and what Python's lookup guesses while it is said: the app and the page must guess the same."""

from __future__ import annotations

import random
from itertools import pairwise

from lfm2_export.chat.drafts import Drafts, Lookup
from lfm2_export.runtimes.session import DraftCost

MOST = 15


def text() -> list[int]:
    """2,500 tokens in turns that say something new, repeat what was said, repeat it with faults, and loop."""
    draw = random.Random(11)
    said = [draw.randrange(9) for _ in range(20)]
    while len(said) < 2500:
        fresh = [draw.randrange(draw.choice([4, 60000])) for _ in range(draw.randrange(80))]
        start = draw.randrange(len(said))
        copied = said[start : start + draw.randrange(120)]
        faulty = [token if draw.random() < 0.9 else draw.randrange(9) for token in copied]
        said += [*fresh, *copied, *faulty, *(copied[-3:] * 9)]
    return said[:2500]


def expected(text: list[int], cost: DraftCost) -> list[list[int]]:
    """Each draft as the text goes on, empty ones too; many go on behind a difference, where no two tokens are known."""
    drafts, found, at, resumed = Drafts(Lookup(), cost), list[list[int]](), 1, 0
    while at < len(text):
        draft = drafts.propose(text[:at], min(MOST, len(text) - at))
        right = next((n for n, guess in enumerate(draft) if guess != text[at + n]), len(draft))
        if draft:
            drafts.judged(len(draft), right)
        found.append(draft)
        resumed += bool(draft) and (text[at - 2], text[at - 1]) not in pairwise(text[: at - 1])
        at += right + 1
    assert resumed > 50
    return found
