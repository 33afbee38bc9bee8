"""Text to judge a model on: held-out chats of the nano generator, in the checkpoint's own template and tokenizer.

Plain English chat is a fair, if small, sample for any LFM2. A checkpoint without a tokenizer or template gets
random ids, and the report says so.
"""

from __future__ import annotations

from dataclasses import dataclass

from lfm2_export.checkpoint.config import LFM2Config
from lfm2_export.checkpoint.nano.tasks import questions
from lfm2_export.checkpoint.tokenizer import ChatTokenizer
from lfm2_export.parity.cases import random_ids

_SEED = 2026


@dataclass(frozen=True)
class EvaluationText:
    """Token windows for teacher forcing, and where they come from."""

    kind: str  # "held-out chats" or "random ids"
    windows: list[tuple[int, ...]]


def evaluation_text(
    config: LFM2Config, tokenizer: ChatTokenizer | None, window: int, tokens: int, seed: int = _SEED
) -> EvaluationText:
    """At least `tokens` predicted tokens, in windows that fit the artifact's window."""
    if tokenizer is None or not tokenizer.has_template:
        length = min(64, window)
        count = -(-tokens // (length - 1))
        return EvaluationText("random ids", [random_ids(config, length, seed + i) for i in range(count)])
    windows: list[tuple[int, ...]] = []
    for question in questions(seed, tokens, split="heldout"):
        turns = [*question.messages, {"role": "assistant", "content": question.answer}]
        text = tokenizer.render(turns, tools=question.tools or None, add_generation_prompt=False)
        windows.append(tuple(tokenizer.encode(text)[:window]))
        if sum(len(each) - 1 for each in windows) >= tokens:  # the first token of a window is not predicted
            break
    return EvaluationText("held-out chats", windows)
