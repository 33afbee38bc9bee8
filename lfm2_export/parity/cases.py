"""What is fed to every runtime: cases are data, made from a seed, the same for eager and each artifact."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

from lfm2_export.checkpoint.config import LFM2Config
from lfm2_export.evaluate.text import random_ids


@dataclass(frozen=True)
class Case:
    """Token ids and how they are cut into calls; `pad_to` right-pads each shorter call to that many rows."""

    name: str
    tokens: tuple[int, ...]
    chunks: tuple[int, ...]
    pad_to: int | None = None

    def calls(self) -> list[tuple[int, ...]]:
        """The tokens of each call."""
        cut, start = [], 0
        for size in self.chunks:
            cut.append(self.tokens[start : start + size])
            start += size
        return cut


def lowering_cases(
    config: LFM2Config, window: int, text: Sequence[int], pads: bool, count: int = 48, steps: int = 64
) -> list[Case]:
    """Prefill, decode, every kind of split and (where the form pads) padding, of `count` tokens each.

    One case goes on for `steps` single steps instead. A sliding window that these do not reach the end of is filled
    before: by the first call of the cases with single steps, random chunks and padding.
    """
    total = min(count, window)
    tokens = _fit(text, total)
    steps = min(steps, window - 1)
    long = _fit(text, min(window, max(16, before_seam(config, steps)) + steps))
    early = min(before_seam(config, total), window - total)
    later, first = _fit(text, early + total), (early,) if early else ()
    width = config.conv_L_cache
    singles = min(12, total)
    cases = [
        Case("prefill", tokens, (total,)),
        Case("decode", tokens[:singles], (1,) * singles),
        Case(f"prefill, then {steps} steps", long, (len(long) - steps, *(1,) * steps)),
        Case("chunks shorter than the conv", tokens, _chunks(total, list(range(1, width + 1)))),
        Case("random chunks", later, (*first, *_chunks(total, [random.Random(7).randint(1, 9) for _ in range(8)]))),
        Case("random ids", random_ids(config, total, seed=11), (total,)),
    ]
    if pads:
        padded = max(width, 8)
        chunks = (*first, *_chunks(total, list(range(1, padded))))
        cases.append(Case("padded chunks", later, chunks, pad_to=padded))
    return cases


def before_seam(config: LFM2Config, count: int) -> int:
    """Return how many tokens to feed before `count` others so that a sliding window ends in the middle of these.

    0 where they reach its end by themselves or no attention slides: else a fault behind it would show nowhere.
    """
    return max(0, (config.sliding_window or 1) - 1 - count // 2)


def _fit(text: Sequence[int], count: int) -> tuple[int, ...]:
    repeated = list(text)
    while len(repeated) < count:
        repeated += text
    return tuple(repeated[:count])


def _chunks(total: int, sizes: list[int]) -> tuple[int, ...]:
    """`sizes` over and over, the last one cut so that they sum to `total`."""
    chunks: list[int] = []
    while (left := total - sum(chunks)) > 0:
        chunks.append(min(left, sizes[len(chunks) % len(sizes)]))
    return tuple(chunks)
