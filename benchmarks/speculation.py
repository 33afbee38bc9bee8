"""Drafts: what a call that verifies one costs, what lookup gets right, and that the text stays the same.

    python -m benchmarks.speculation ARTIFACT --threads 2          cost by tokens, and the speed-up by acceptance
    python -m benchmarks.speculation ARTIFACT --replies            whole replies at true shapes, timed
    python -m benchmarks.speculation ARTIFACT --text               acceptance on nano, its text beside plain decoding
    python -m benchmarks.speculation ARTIFACT --copying            the same on tasks that copy, of a model taught them
    python -m benchmarks.speculation MODEL.gguf …                  the same in llama.cpp

Costs need true shapes, with random weights or not; the machine must be quiet. Text needs trained weights, nano's or
those of `training/nano.py --lesson copying`, and no quiet; `--prices` of a cost report says what its calls would take.
"""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable
from datetime import date
from functools import partial
from pathlib import Path
from typing import Annotated

import numpy as np
import typer

from benchmarks import counted_replies, timed_replies
from benchmarks.cpu import RESULTS
from benchmarks.peers.llama_cpp_session import LlamaCpp
from lfm2_export import runtimes
from lfm2_export.artifact.folder import open_artifact
from lfm2_export.checkpoint.config import from_dict
from lfm2_export.checkpoint.tokenizer import ChatTokenizer
from lfm2_export.environment.machine import machine
from lfm2_export.errors import UsageError
from lfm2_export.files import ANY, write_text
from lfm2_export.model.load import open_checkpoint
from lfm2_export.recipes import Recipe
from lfm2_export.runtimes.session import Session

_TIE = 0.01  # of the largest logit, where no recipe says what its rounding may cost
_ACCEPTANCES = (0.5, 0.7, 0.8, 0.9, 0.95, 1.0)


def main(
    artifact: Annotated[Path, typer.Argument(help="Artifact folder, or a GGUF for llama.cpp.")],
    runtime: Annotated[str | None, typer.Option(help="A runtime that verifies drafts. [the artifact's own]")] = None,
    threads: Annotated[int, typer.Option(help="CPU threads.")] = 2,
    context: Annotated[int, typer.Option(help="Tokens in the KV cache.")] = 128,
    rounds: Annotated[int, typer.Option(help="Samples of each length.")] = 15,
    replies: Annotated[bool, typer.Option("--replies", help="Times of whole replies instead.")] = False,
    text: Annotated[bool, typer.Option("--text", help="Acceptance and exactness on nano's questions instead.")] = False,
    copying: Annotated[bool, typer.Option("--copying", help="The same on tasks that copy.")] = False,
    count: Annotated[int, typer.Option(help="Questions or tasks, of those that the model has never seen.")] = 200,
    prices: Annotated[Path | None, typer.Option(help="Report of costs, to price the calls of a text by.")] = None,
    results: Annotated[Path, typer.Option(help="Where the report goes.")] = RESULTS,
) -> None:
    """Measure, print and keep a report."""
    session, vocab, tie = _opened(artifact, runtime, threads)
    name = artifact.name.removesuffix(".gguf")
    found: dict[str, object] = {
        "artifact": name,
        "runtime": f"{session.runtime} {session.version}",
        "threads": threads,
        "machine": machine(),
    }
    if text or copying:
        found |= _texts(artifact, session, tie, count, copying, prices)
    elif replies:
        found |= timed_replies.measure(session, vocab, context, rounds)
    else:
        found |= _costs(session, vocab, context, rounds)
    kind = "copying" if copying else "text" if text else f"{'replies' if replies else 'cost'}-{threads}t"
    path = results / f"{date.today()}-speculation-{name}-{session.runtime}-{kind}.json"
    write_text(path, json.dumps(found, indent=2) + "\n", force=True, kind=ANY)
    print(json.dumps(found, indent=2))


def _opened(path: Path, runtime: str | None, threads: int) -> tuple[Session, int, float]:
    """A session, the size of its vocabulary, and below which margin two tokens count as a tie."""
    if path.suffix == ".gguf":
        peer = LlamaCpp(path, threads)
        return peer, peer.vocab, _TIE
    manifest = open_artifact(path).manifest
    chosen = runtimes.find(runtime) if runtime else runtimes.first(manifest)
    gates = Recipe.model_validate(manifest.recipe).gates
    vocab = from_dict(manifest.source.config, "manifest.json").vocab_size
    return chosen.open_session(path, manifest, threads), vocab, gates.lowering.max_error


def _costs(session: Session, vocab: int, context: int, rounds: int) -> dict[str, object]:
    """The time of a call by its tokens, interleaved so that a drift of the machine hits all of them.

    The conversation grows by a token each round: to restore it before a step would let the cores go to sleep.
    """
    ids = np.random.default_rng(1).integers(vocab, size=context + session.verifies).tolist()
    session.prefill(ids[:context])
    sizes = range(1, session.verifies + 1)
    calls: dict[str, Callable[[], object]] = {"decode": lambda: session.decode(ids[-1])}
    for size in sizes:
        calls[str(size)] = partial(session.verify, ids[context : context + size])
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for number in range(rounds + 1):
        for name, call in calls.items():
            start = time.perf_counter()
            call()
            if number:  # the first is a warm-up
                seconds[name].append(time.perf_counter() - start)
    step = statistics.median(seconds["decode"])
    cost = {size: statistics.median(seconds[str(size)]) / step for size in sizes}
    return {
        "context": context,
        "decode_seconds": step,
        "cost_of_a_call_in_steps": {size: round(value, 3) for size, value in cost.items()},
        "speed_up_by_acceptance": {rate: _speed_up(rate, cost) for rate in _ACCEPTANCES},
    }


def _speed_up(acceptance: float, cost: dict[int, float]) -> dict[str, float]:
    """Tokens for the time of a step, at the best number of guesses."""
    tokens = {size: sum(acceptance**power for power in range(size)) for size in cost}
    best = max(cost, key=lambda size: tokens[size] / cost[size])
    return {"guesses": best - 1, "speed_up": round(tokens[best] / cost[best], 2)}


def _texts(
    artifact: Path, session: Session, tie: float, count: int, copying: bool, prices: Path | None
) -> dict[str, object]:
    cost = None
    if prices is not None:
        listed = json.loads(prices.read_text())["cost_of_a_call_in_steps"]
        cost = {int(size): value for size, value in listed.items()}
    replies = counted_replies.Replies(session, _tokenizer(artifact), tie)
    found = replies.to_copying(count) if copying else replies.to_questions(count)
    named = {"tie": tie} | ({"priced_by": prices.name} if prices else {})
    return named | {name: said.report(cost) for name, said in found.items()}


def _tokenizer(artifact: Path) -> ChatTokenizer:
    """The artifact's own; nano's where it is a GGUF, which was made of nano then."""
    if artifact.suffix == ".gguf":
        nano = open_checkpoint("nano")
        tokenizer = ChatTokenizer.load(nano.folder, nano.config)
    else:
        manifest = open_artifact(artifact).manifest
        tokenizer = ChatTokenizer.load(artifact, from_dict(manifest.source.config, "manifest.json"))
    if tokenizer is None:
        raise UsageError(f"{artifact}: has no chat template, and so no replies")
    return tokenizer


if __name__ == "__main__":
    typer.run(main)
