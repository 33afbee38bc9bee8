"""From a prompt to new tokens: the loop that `chat` and `parity` share."""

from __future__ import annotations

import time
from collections.abc import Collection, Iterator, Sequence

import numpy as np

from lfm2_export.chat.drafts import Drafts
from lfm2_export.chat.sampling import Sampler, greedy
from lfm2_export.runtimes.session import Session


def generate(
    session: Session,
    prompt: Sequence[int],
    stop: Collection[int],
    limit: int,
    sampler: Sampler = greedy,
    drafts: Drafts | None = None,
    before: Sequence[int] = (),
    images: np.ndarray | None = None,
) -> Iterator[int]:
    """Feed `prompt` to the session, then yield up to `limit` new tokens; a stop token is fed but not yielded.

    What stands for images in the prompt is `images [places, H]`, in order.

    Ends quietly at the window's edge. What was yielded is part of the session's state, the stop token too, so a
    next turn can go on from there. `drafts` change the time it takes and not the tokens; they are looked for in the
    tokens `before` the prompt as well.
    """
    seen, said = list(prompt), [*before, *prompt]
    logits = session.prefill(prompt) if images is None else session.prefill_with_images(prompt, images)
    token = None
    made = 0
    while made < limit:
        if token is None:
            token = sampler(logits, seen)
        room = min(limit - made, session.window - session.position)
        if room < 1:
            return
        said.append(token)
        guesses = [] if drafts is None else drafts.propose(said, min(room, session.verifies) - 1)
        if drafts is not None and guesses:
            fed, logits, token = _verified(session, token, guesses, stop, sampler, seen)
            drafts.judged(len(guesses), len(fed) - 1)
            said += fed[1:]
        else:
            fed, logits, token = [token], _decoded(session, token, drafts), None
        for each in fed:
            if each in stop:
                return
            seen.append(each)
            made += 1
            yield each


def _decoded(session: Session, token: int, drafts: Drafts | None) -> np.ndarray:
    start = time.perf_counter()
    logits = session.decode(token)
    if drafts is not None:
        drafts.calls += 1
        drafts.single_steps += 1
        drafts.single_seconds += time.perf_counter() - start
    return logits


def _verified(
    session: Session, token: int, guesses: Sequence[int], stop: Collection[int], sampler: Sampler, seen: Sequence[int]
) -> tuple[list[int], np.ndarray, int | None]:
    """Feed a token and as many of the guesses at what follows as the sampler draws, none behind a stop token.

    Returns what was fed, the logits behind it, and the next token, where the sampler has drawn it already.
    """
    rows, fed = session.verify((token, *guesses)), [token]
    drawn = None
    for row, guess in zip(rows, guesses, strict=False):
        if fed[-1] in stop:
            break
        drawn = sampler(row, [*seen, *fed])
        if drawn != guess:
            break
        fed.append(drawn)
        drawn = None
    session.keep(len(fed))
    return fed, rows[len(fed) - 1], drawn
