"""From a prompt to new tokens: the token-by-token loop that `chat` and `parity` share."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence

from lfm2_export.chat.sampling import Sampler, greedy
from lfm2_export.runtimes.session import Session


def generate(
    session: Session, prompt: Sequence[int], stop: Collection[int], limit: int, sampler: Sampler = greedy
) -> Iterator[int]:
    """Feed `prompt` to the session, then yield up to `limit` new tokens; a stop token is fed but not yielded.

    Ends quietly at the window's edge. What was yielded is part of the session's state, the stop token too, so a
    next turn can go on from there.
    """
    seen = list(prompt)
    logits = session.prefill(prompt)
    for _ in range(limit):
        token = sampler(logits, seen)
        if session.position >= session.window:
            return
        logits = session.decode(token)
        if token in stop:
            return
        seen.append(token)
        yield token
