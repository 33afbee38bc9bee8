"""How long drafts are, tried without a model: replies of 128 tokens, each call at the price in a report of costs.

    python -m benchmarks.simulated_replies benchmarks/results/…-speculation-350m-xnnpack-int4-executorch-cost-2t.json

Prints how many times faster than single steps a reply is by acceptance; on text of eight tokens in random order, where
lookup always finds something and is mostly wrong ("few"); and where the right answers of tasks that copy are said.
The former are what `benchmarks.speculation --replies` measures, but for what the loop and the sampler take; a rule
for the length can be tried so in seconds.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Annotated

import typer

from benchmarks.copying import copying
from benchmarks.timed_replies import Rightly
from lfm2_export.chat.drafts import Drafts, Lookup, Source
from lfm2_export.checkpoint.tokenizer import ChatTokenizer
from lfm2_export.errors import UsageError
from lfm2_export.model.load import open_checkpoint
from lfm2_export.runtimes.onnxruntime import OnnxRuntimeSession
from lfm2_export.runtimes.session import DraftCost, Session

_CONTEXT, _REPLY, _FEW = 128, 128, 8
_TASKS, _SEED = 360, 500  # those that `benchmarks.speculation --copying --count 360` asks
_ACCEPTANCES = (0.2, 0.35, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)

Said = tuple[list[int], int, Source]  # prompt and reply, where the reply begins, whoever guesses


def main(
    report: Annotated[Path, typer.Argument(help="A report of `benchmarks.speculation ARTIFACT`.")],
    replies: Annotated[int, typer.Option(help="Replies for each figure.")] = 40,
) -> None:
    """Print the table."""
    cost, assumed = _prices(report)
    for rate in _ACCEPTANCES:
        print(f"{rate:.2f}  {_faster(cost, assumed, _random(replies, 1 << 16, _rightly(rate))):.3f}")
    print(f"few   {misled(report, replies):.3f}")
    print(f"copy  {_faster(cost, assumed, _copied()):.3f}")


def misled(report: Path, replies: int) -> float:
    """Return how many times faster than single steps so many replies are whose text misleads lookup."""
    cost, assumed = _prices(report)
    return _faster(cost, assumed, _random(replies, _FEW, lambda *_: Lookup()))


def _prices(report: Path) -> tuple[dict[int, float], DraftCost]:
    found = json.loads(report.read_text())
    cost = {int(size): value for size, value in found["cost_of_a_call_in_steps"].items()}
    return cost, (OnnxRuntimeSession if found["runtime"].startswith("onnxruntime") else Session).draft_cost


def _rightly(rate: float) -> Callable[[Sequence[int], int], Source]:
    return lambda text, seed: Rightly(text[_CONTEXT:], _CONTEXT, rate, seed)


def _random(replies: int, vocab: int, source: Callable[[Sequence[int], int], Source]) -> Iterator[Said]:
    for seed in range(replies):
        draw = random.Random(seed)
        text = [draw.randrange(1 << 16) for _ in range(_CONTEXT)] + [draw.randrange(vocab) for _ in range(_REPLY)]
        yield text, _CONTEXT, source(text, seed)


def _copied() -> Iterator[Said]:
    nano = open_checkpoint("nano")
    tokenizer = ChatTokenizer.load(nano.folder, nano.config)
    if tokenizer is None:
        raise UsageError("nano has no chat template, and so no replies")
    for task in copying(_SEED, _TASKS, split="heldout"):
        prompt = tokenizer.encode(tokenizer.render(task.messages, tools=task.tools or None))
        yield [*prompt, *tokenizer.encode(task.answer)], len(prompt), Lookup()


def _faster(cost: dict[int, float], assumed: DraftCost, replies: Iterable[Said]) -> float:
    tokens = spent = 0.0
    for text, start, source in replies:
        drafts, at = Drafts(source, assumed), start + 1
        tokens += len(text) - start
        while at <= len(text):
            guesses = drafts.propose(text[:at], min(len(cost) - 1, len(text) - at))
            right = next((n for n, guess in enumerate(guesses) if guess != text[at + n]), len(guesses))
            if guesses:
                drafts.judged(len(guesses), right)
            spent += cost[len(guesses) + 1] if guesses else 1
            at += right + 1
    return tokens / spent


if __name__ == "__main__":
    typer.run(main)
