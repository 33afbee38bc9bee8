"""Nano's questions answered by an eager model, all at once.

A greedy reply is the wanted one if and only if every token of it, the end marker included, is the likeliest after the
tokens before it: one pass over question and answer tells.
"""

from __future__ import annotations

from collections.abc import Sequence

from lfm2_export.checkpoint.nano.tasks import Question
from lfm2_export.checkpoint.tokenizer import ChatTokenizer
from lfm2_export.evaluate.teacher_forcing import batched, score
from lfm2_export.model.decoder import Decoder


def answered(decoder: Decoder, tokenizer: ChatTokenizer, asked: Sequence[Question]) -> dict[str, float]:
    """Share of questions answered exactly, by kind and as "all"."""
    begins: dict[tuple[int, ...], tuple[int, str]] = {}
    for question in asked:
        prompt = tokenizer.encode(tokenizer.render(question.messages, tools=question.tools or None))
        answer = tokenizer.encode(question.answer, add_special_tokens=False)
        begins[(*prompt, *answer, tokenizer.eos_ids[0])] = len(prompt), question.kind
    right: dict[str, list[bool]] = {}
    for part, logits in zip(batched(list(begins)), score(decoder, list(begins)), strict=True):
        best, at = logits.argmax(-1).tolist(), 0
        for window in part:
            (begin, kind), rows = begins[window], best[at : at + len(window) - 1]
            at += len(window) - 1
            for name in (kind, "all"):
                right.setdefault(name, []).append(tuple(rows[begin - 1 :]) == window[begin:])
    return {kind: sum(marks) / len(marks) for kind, marks in right.items()}
