"""Nano's held-out questions, about pictures too, asked of an artifact or an eager model: the share answered exactly."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import numpy as np

from lfm2_export.chat.generation import generate
from lfm2_export.checkpoint.nano.tasks import Question, questions
from lfm2_export.checkpoint.nano_vl.drawing import draw
from lfm2_export.checkpoint.nano_vl.patches import FOLD, IMAGE, patches, text_of
from lfm2_export.checkpoint.nano_vl.tasks import picture_questions
from lfm2_export.checkpoint.tokenizer import ChatTokenizer
from lfm2_export.evaluate.teacher_forcing import batched
from lfm2_export.extras import require
from lfm2_export.images.pictures import with_pictures
from lfm2_export.model.sequences import TokenSequences
from lfm2_export.runtimes.session import Session

_SEED = 500  # of the held-out questions


def task_accuracy(session: Session, tokenizer: ChatTokenizer, count: int) -> dict[str, float] | None:
    """Return the share of `count` questions that a session answers exactly, by kind and as "all".

    Questions that do not fit the session's window are left out; None if none does.
    """
    marks = []
    for question in questions(_SEED, count, split="heldout"):
        prompt = tokenizer.encode(tokenizer.render(question.messages, tools=question.tools or None))
        limit = len(tokenizer.encode(question.answer)) + 8  # past that the reply is wrong anyway
        if len(prompt) + limit > session.window:
            continue
        session.reset()
        reply = tokenizer.decode(generate(session, prompt, tokenizer.eos_ids, limit), skip_special_tokens=False)
        marks.append((question.kind, reply == question.answer))
    return _shares(marks) or None


def picture_accuracy(session: Session, tokenizer: ChatTokenizer, count: int) -> dict[str, float] | None:
    """The same of `count` questions about drawn pictures, of a session of nano-vl; needs Pillow."""
    require("PIL", "pillow", "vision", "asking nano-vl about pictures")
    marks = []
    for question in picture_questions(_SEED, count, "heldout"):
        rows, columns = question.scene.grid
        text = with_pictures(tokenizer.render(question.messages), [text_of(rows, columns)], IMAGE)
        prompt = tokenizer.encode(text)
        limit = len(tokenizer.encode(question.answer)) + 8
        if len(prompt) + limit > session.window:
            continue
        seen = session.encode(patches(np.asarray(draw(question.scene))[None])[0], FOLD * rows, FOLD * columns)
        session.reset()
        reply = tokenizer.decode(generate(session, prompt, tokenizer.eos_ids, limit, images=seen), False)
        marks.append((question.kind, reply == question.answer))
    return _shares(marks) or None


def answered(
    read: Callable[[TokenSequences], list[np.ndarray]], tokenizer: ChatTokenizer, asked: Sequence[Question]
) -> dict[str, float]:
    """Return the share of questions that a model answers exactly, by kind and as "all", all asked at once.

    `read` gives its logits as `score` does an eager model's.
    A greedy reply is the wanted one if and only if every token of it, the end marker included, is the likeliest after
    the tokens before it: one pass over question and answer tells.
    """
    begins: dict[tuple[int, ...], tuple[int, str]] = {}
    for question in asked:
        prompt = tokenizer.encode(tokenizer.render(question.messages, tools=question.tools or None))
        answer = tokenizer.encode(question.answer, add_special_tokens=False)
        begins[(*prompt, *answer, tokenizer.eos_ids[0])] = len(prompt), question.kind
    marks = []
    for batch, logits in zip(batched(list(begins)), read(list(begins)), strict=True):
        best, at = logits.argmax(-1).tolist(), 0
        for tokens in batch:
            (begin, kind), rows = begins[tokens], best[at : at + len(tokens) - 1]
            at += len(tokens) - 1
            marks.append((kind, tuple(rows[begin - 1 :]) == tokens[begin:]))
    return _shares(marks)


def _shares(marks: Iterable[tuple[str, bool]]) -> dict[str, float]:
    """(kind, whether it was right) of each question → share of right ones, by kind and as "all"."""
    right: dict[str, list[bool]] = {}
    for kind, mark in marks:
        right.setdefault(kind, []).append(mark)
        right.setdefault("all", []).append(mark)
    return {kind: sum(known) / len(known) for kind, known in right.items()}
