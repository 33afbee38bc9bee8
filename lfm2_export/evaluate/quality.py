"""Question 2: what did quantization cost? The artifact itself, token by token, against fp32 eager."""

from __future__ import annotations

import numpy as np

from lfm2_export.chat.generation import generate
from lfm2_export.checkpoint.nano.tasks import questions
from lfm2_export.checkpoint.tokenizer import ChatTokenizer
from lfm2_export.evaluate.exact import Exact
from lfm2_export.evaluate.metrics import Rows, compare_rows, joined, pieces
from lfm2_export.evaluate.text import EvaluationText
from lfm2_export.progress import Progress
from lfm2_export.runtimes.session import Session

_SEED = 500  # of the held-out questions


def measure(session: Session, exact: Exact, text: EvaluationText, progress: Progress) -> Rows:
    """Teacher-forced: the artifact decodes every token of every sequence, as an app would run it.

    Returns the figures of every prediction, in the order of the text. A few rows of logits are in memory at a time.
    """
    progress(f"{session.runtime}: against fp32 on {text.kind}")
    found: list[Rows] = []
    for number, sequence in enumerate(text.windows):
        session.reset()
        for start, stop in pieces(len(sequence) - 1):
            ours = np.stack([session.decode(token) for token in sequence[start:stop]])
            theirs = exact.logits(number, start, stop).numpy()
            found.append(compare_rows(ours, theirs, np.array(sequence[start + 1 : stop + 1])))
    return joined(found)


def task_accuracy(session: Session, tokenizer: ChatTokenizer, count: int) -> dict[str, float] | None:
    """Share of held-out nano questions answered exactly (greedy), by kind and as "all".

    Questions that do not fit the session's window are left out; None if none does.
    """
    right: dict[str, list[bool]] = {}
    for question in questions(_SEED, count, split="heldout"):
        prompt = tokenizer.encode(tokenizer.render(question.messages, tools=question.tools or None))
        limit = len(tokenizer.encode(question.answer)) + 8  # past that the reply is wrong anyway
        if len(prompt) + limit > session.window:
            continue
        session.reset()
        reply = tokenizer.decode(generate(session, prompt, tokenizer.eos_ids, limit), skip_special_tokens=False)
        right.setdefault(question.kind, []).append(reply == question.answer)
        right.setdefault("all", []).append(reply == question.answer)
    return {kind: sum(results) / len(results) for kind, results in right.items()} or None
