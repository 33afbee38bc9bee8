"""Question 2: what did quantization cost? The artifact itself, token by token, against fp32 eager."""

from __future__ import annotations

import numpy as np

from lfm2_export.chat.generation import generate
from lfm2_export.checkpoint.nano.tasks import questions
from lfm2_export.checkpoint.tokenizer import ChatTokenizer
from lfm2_export.evaluate.metrics import QuantizationLoss, quantization_loss
from lfm2_export.evaluate.text import EvaluationText
from lfm2_export.runtimes.eager import EagerSession
from lfm2_export.runtimes.session import Session

_SEED = 500  # of the held-out questions


def measure(session: Session, reference: EagerSession, text: EvaluationText) -> QuantizationLoss:
    """Teacher-forced: the artifact decodes every token of every window, as an app would run it."""
    actual, expected, targets = [], [], []
    for window in text.windows:
        session.reset()
        reference.reset()
        actual.append(np.stack([session.decode(token) for token in window[:-1]]))
        expected.append(reference.score(window[:-1]))
        targets.append(window[1:])
    return quantization_loss(np.concatenate(actual), np.concatenate(expected), np.concatenate(targets))


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
