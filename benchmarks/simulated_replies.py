"""How long drafts are, tried without a model: replies of 128 tokens, each call at the price in a report of costs.

    python -m benchmarks.simulated_replies benchmarks/results/…-speculation-350m-xnnpack-int4-executorch-cost-2t.json

Prints how many times faster than single steps a reply is by acceptance, and on text of eight tokens in random order,
where lookup always finds something and is mostly wrong. It is what `benchmarks.speculation --replies` measures, but for
what the loop and the sampler take; a rule for the length can be tried so in seconds.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated

import typer

from benchmarks.timed_replies import Rightly
from lfm2_export.chat.drafts import Drafts, Lookup, Source
from lfm2_export.runtimes.onnxruntime import OnnxRuntimeSession
from lfm2_export.runtimes.session import DraftCost, Session

_CONTEXT, _REPLY, _REPLIES, _FEW = 128, 128, 40, 8
_ACCEPTANCES = (0.2, 0.35, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)


def main(report: Annotated[Path, typer.Argument(help="A report of `benchmarks.speculation ARTIFACT`.")]) -> None:
    """Print the table."""
    found = json.loads(report.read_text())
    cost = {int(size): value for size, value in found["cost_of_a_call_in_steps"].items()}
    assumed = (OnnxRuntimeSession if found["runtime"].startswith("onnxruntime") else Session).draft_cost
    for rate in _ACCEPTANCES:
        print(f"{rate:.2f}  {_faster(cost, assumed, 1 << 16, _rightly(rate)):.3f}")
    print(f"few   {_faster(cost, assumed, _FEW, lambda *_: Lookup()):.3f}")


def _rightly(rate: float) -> Callable[[Sequence[int], int], Source]:
    return lambda text, seed: Rightly(text[_CONTEXT:], _CONTEXT, rate, seed)


def _faster(
    cost: dict[int, float], assumed: DraftCost, vocab: int, source: Callable[[Sequence[int], int], Source]
) -> float:
    spent = 0.0
    for seed in range(_REPLIES):
        draw = random.Random(seed)
        text = [draw.randrange(1 << 16) for _ in range(_CONTEXT)] + [draw.randrange(vocab) for _ in range(_REPLY)]
        drafts, at = Drafts(source(text, seed), assumed), _CONTEXT + 1
        while at <= len(text):
            guesses = drafts.propose(text[:at], min(len(cost) - 1, len(text) - at))
            right = next((n for n, guess in enumerate(guesses) if guess != text[at + n]), len(guesses))
            if guesses:
                drafts.judged(len(guesses), right)
            spent += cost[len(guesses) + 1] if guesses else 1
            at += right + 1
    return _REPLIES * _REPLY / spent


if __name__ == "__main__":
    typer.run(main)
