"""Drafts: what a call that verifies one costs, what lookup gets right, and that the text stays the same.

    python -m benchmarks.speculation ARTIFACT --threads 2          cost by tokens, and the speed-up by acceptance
    python -m benchmarks.speculation ARTIFACT --replies            whole replies at true shapes, timed
    python -m benchmarks.speculation ARTIFACT --text               acceptance on nano, its text beside plain decoding
    python -m benchmarks.speculation MODEL.gguf …                  the same in llama.cpp

Costs need true shapes, with random weights or not; the machine must be quiet. Text needs trained weights: nano's
held-out questions, and the same ones asked in one conversation and then once more, which is text to copy. Where two
texts differ, the margin between the two likeliest tokens there is compared with the recipe's lowering error.
"""

from __future__ import annotations

import json
import statistics
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from datetime import date
from functools import partial
from pathlib import Path
from typing import Annotated

import numpy as np
import typer

from benchmarks import timed_replies
from benchmarks.cpu import RESULTS
from benchmarks.peers.llama_cpp_session import LlamaCpp
from lfm2_export import runtimes
from lfm2_export.artifact.folder import open_artifact
from lfm2_export.chat.drafts import Drafts, Lookup
from lfm2_export.chat.generation import generate
from lfm2_export.checkpoint.config import from_dict
from lfm2_export.checkpoint.nano.tasks import Question, questions
from lfm2_export.checkpoint.tokenizer import ChatTokenizer
from lfm2_export.environment.machine import machine
from lfm2_export.files import ANY, write_text
from lfm2_export.model.load import open_checkpoint
from lfm2_export.recipes import Recipe
from lfm2_export.runtimes.session import Session

_SEED = 500  # of nano's held-out questions, as every proof asks them
_TOGETHER = 8  # questions of one conversation
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
    count: Annotated[int, typer.Option(help="Questions, of those nano has never seen.")] = 200,
    results: Annotated[Path, typer.Option(help="Where the report goes.")] = RESULTS,
) -> None:
    """Measure, print and keep a report."""
    session, vocab, limit = _opened(artifact, runtime, threads)
    name = artifact.name.removesuffix(".gguf")
    found: dict[str, object] = {
        "artifact": name,
        "runtime": f"{session.runtime} {session.version}",
        "threads": threads,
        "machine": machine(),
    }
    if text:
        found |= _texts(session, limit, count)
    elif replies:
        found |= timed_replies.measure(session, vocab, context, rounds)
    else:
        found |= _costs(session, vocab, context, rounds)
    kind = "text" if text else f"{'replies' if replies else 'cost'}-{threads}t"
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
    """The time of a call by its tokens, interleaved so that a drift of the machine hits all of them."""
    ids = np.random.default_rng(1).integers(vocab, size=context + session.verifies).tolist()
    session.prefill(ids[:context])
    there = session.state() if session.has_state else None
    sizes = range(1, session.verifies + 1)
    calls: dict[str, Callable[[], object]] = {"decode": lambda: session.decode(ids[-1])}
    for size in sizes:
        calls[str(size)] = partial(session.verify, ids[context : context + size])
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for number in range(rounds + 1):
        for name, call in calls.items():
            if name == "decode" and there is not None:
                session.restore(there)
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


@dataclass
class Said:
    """What lookup made of some replies, and where they differ from plain decoding's."""

    replies: int = 0
    tokens: int = 0
    calls: int = 0  # steps and verified drafts
    tokens_of_calls: dict[int, int] = field(default_factory=dict)  # tokens of a call → calls; the price of a reply
    drafted: int = 0
    accepted: int = 0
    different: int = 0  # replies
    close_calls: int = 0  # of those, whose margin at the first difference is below the lowering error
    margins: list[float] = field(default_factory=list)  # there, relative to the largest logit


@dataclass
class Counted(Drafts):
    """Drafts that remember how long they were."""

    sizes: Counter[int] = field(default_factory=Counter)  # tokens of a verifying call → calls

    def judged(self, drafted: int, accepted: int) -> None:
        super().judged(drafted, accepted)
        self.sizes[drafted + 1] += 1


def _texts(session: Session, limit: float, count: int) -> dict[str, object]:
    nano = open_checkpoint("nano")
    tokenizer = ChatTokenizer.load(nano.folder, nano.config)
    assert tokenizer is not None
    asked = questions(_SEED, count, split="heldout")
    alone, copied, endless = Said(), Said(), Said()
    for question in asked:
        prompt = tokenizer.encode(tokenizer.render(question.messages, tools=question.tools or None))
        _compare(session, prompt, tokenizer.eos_ids, 48, limit, alone)
    for prompt in _repeated(tokenizer, asked, session.window - 200):
        _compare(session, prompt, tokenizer.eos_ids, 48, limit, copied)
        _compare(session, prompt, (), 160, limit, endless)
    kinds = {"held-out questions": alone, "asked again": copied, "asked again, 160 tokens without an end": endless}
    return {"limit": limit, **{name: asdict(said) for name, said in kinds.items()}}


def _repeated(tokenizer: ChatTokenizer, asked: Sequence[Question], room: int) -> list[list[int]]:
    """Conversations in which some questions are answered, and then each of them is asked once more."""
    found = []
    plain = [question for question in asked if not question.tools and len(question.messages) == 1]
    for start in range(0, len(plain), _TOGETHER):
        some = plain[start : start + _TOGETHER]
        answered = [m for q in some for m in (*q.messages, {"role": "assistant", "content": q.answer})]
        for question in some:
            prompt = tokenizer.encode(tokenizer.render([*answered, *question.messages]))
            if len(prompt) < room:
                found.append(prompt)
    return found


def _compare(
    session: Session, prompt: Sequence[int], stop: Sequence[int], limit: int, allowed: float, said: Said
) -> None:
    """One reply, plainly and with lookup."""
    session.reset()
    plain = list(generate(session, prompt, stop, limit))
    session.reset()
    drafts = Counted(Lookup(), session.draft_cost)
    drafted = list(generate(session, prompt, stop, limit, drafts=drafts))
    said.replies += 1
    said.tokens += len(drafted)
    said.drafted += drafts.drafted
    said.accepted += drafts.accepted
    said.calls += drafts.calls
    for size, calls in (drafts.sizes + Counter({1: drafts.single_steps})).items():
        said.tokens_of_calls[size] = said.tokens_of_calls.get(size, 0) + calls
    if drafted == plain:
        return
    at = next((n for n, pair in enumerate(zip(plain, drafted, strict=False)) if pair[0] != pair[1]), len(plain))
    session.reset()
    logits = session.prefill([*prompt, *plain[:at]])
    first, second = np.sort(logits)[::-1][:2]
    margin = float((first - second) / np.abs(logits).max())
    said.different += 1
    said.close_calls += margin < allowed
    said.margins.append(round(margin, 6))


if __name__ == "__main__":
    typer.run(main)
