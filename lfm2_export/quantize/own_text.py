"""Greedy continuations of many prompts at once: each weight is read once for a token of all, not once for every token.

At true sizes decoding one conversation waits for the weights; with others beside it, most of that wait is shared.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import torch

from lfm2_export.model.decoder import Decoder
from lfm2_export.model.state import State, empty_state, write_slices
from lfm2_export.progress import Progress, silent

_ROWS = 32  # side by side: a bound on memory, whatever the number of prompts
_TOLD_EVERY = 2.0  # seconds


def continued(
    decoder: Decoder,
    prompts: Sequence[Sequence[int]],
    stop: Sequence[int],
    limit: int,
    progress: Progress = silent,
) -> tuple[tuple[int, ...], ...]:
    """Each prompt with its greedy continuation, up to a stop token (included) or `limit` tokens in all.

    Deterministic on one machine. Sums are made in another order for other neighbours, so a near tie between two tokens
    may fall otherwise than it would for a prompt alone.
    """
    found: list[tuple[int, ...]] = []
    for start in range(0, len(prompts), _ROWS):
        part = prompts[start : start + _ROWS]
        told = f"the model's own text: conversations {start + 1} to {start + len(part)} of {len(prompts)}"
        found += _side_by_side(decoder, part, stop, limit, _seldom(told, progress))
    return tuple(found)


@torch.inference_mode()
def _side_by_side(
    decoder: Decoder, prompts: Sequence[Sequence[int]], stop: Sequence[int], limit: int, told: Callable[[int], None]
) -> list[tuple[int, ...]]:
    texts = [list(prompt) for prompt in prompts]
    rows = [row for row, text in enumerate(texts) if len(text) < limit]  # those still being written
    state = empty_state(decoder.config, limit, len(rows))
    said = [_next_tokens(decoder, [texts[row]], [0], _row(state, at))[0] for at, row in enumerate(rows)]  # no padding
    while rows:
        for row, token in zip(rows, said, strict=True):
            texts[row].append(token)
        told(sum(map(len, texts)))
        going = [at for at, row in enumerate(rows) if said[at] not in stop and len(texts[row]) < limit]
        if len(going) < len(rows):
            rows, state = [rows[at] for at in going], {name: tensor[going] for name, tensor in state.items()}
        if rows:
            said = _next_tokens(
                decoder, [texts[row][-1:] for row in rows], [len(texts[row]) - 1 for row in rows], state
            )
    return [tuple(text) for text in texts]


def _next_tokens(decoder: Decoder, calls: Sequence[Sequence[int]], seen: Sequence[int], state: State) -> list[int]:
    """The likeliest token after each row's call, all of one length, before which there were `seen` tokens.

    `state` goes on, in place.
    """
    position, length = torch.tensor(seen), torch.tensor([len(call) for call in calls])
    logits, new = decoder(torch.tensor(calls), position, length, state)
    write_slices(state, new, position, length)
    chosen: list[int] = logits.argmax(-1).tolist()
    return chosen


def _row(state: State, at: int) -> State:
    """One conversation's part of it, the same memory."""
    return {name: tensor[at : at + 1] for name, tensor in state.items()}


def _seldom(told: str, progress: Progress) -> Callable[[int], None]:
    """Tells how far it is, every few seconds."""
    last = time.monotonic()

    def tell(tokens: int) -> None:
        nonlocal last
        if time.monotonic() - last >= _TOLD_EVERY:
            last = time.monotonic()
            progress(f"{told}, {tokens} tokens so far")

    return tell
