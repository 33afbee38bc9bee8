"""Turns the nano questions into token batches, and scores a model on held-out ones.

A batch is padded on the right only: attention and convolutions are causal, so padding after the text
cannot reach it and needs no mask. The score is exact match of the whole reply under greedy decoding,
found in one pass: greedy decoding gives the wanted reply if and only if every token of it, end marker
included, is the most likely one after the tokens before it.
"""

import itertools
import json
import re
from collections.abc import Callable, Iterator, Sequence

import torch
from tokenizer import EOS, PAD
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from lfm2_export.checkpoint.nano.tasks import Question, questions

PROMPT_WEIGHT = 0.1  # the prompt is mostly random, but its regular parts teach copying early
_POOL = 16  # batches cut from one pool sorted by length, so that little is padding
_ROLES = "\nsystem\nuser\nassistant\ntool\nList of tools: ["

MIX = ("recall", "tool", "pattern", "recall", "tool", "chat")  # what is learned late is asked more often
Lesson = Callable[..., list[Question]]  # `questions`, or `copying` of the benchmarks

Row = tuple[list[int], list[float]]  # token ids, and how much predicting each of them counts
Batch = tuple[dict[str, torch.Tensor], torch.Tensor]  # what the model is called with, and how much each token counts


def texts(asked: list[Question]) -> Iterator[str]:
    """The plain text a tokenizer meets between special tokens."""
    for question in asked:
        yield _ROLES
        yield from (json.dumps(tool) for tool in question.tools)
        for said in (*(message["content"] for message in question.messages), question.answer):
            yield from filter(None, re.split(r"<\|\w+\|>", said))


def encode(tokenizer: PreTrainedTokenizerFast, question: Question) -> Row:
    """Token ids of prompt, reply and end marker; the prompt counts little."""
    prompt = tokenizer.apply_chat_template(
        question.messages, tools=question.tools or None, add_generation_prompt=True, tokenize=False
    )
    prompt_ids = tokenizer(prompt, add_special_tokens=False).input_ids
    reply_ids = tokenizer(question.answer, add_special_tokens=False).input_ids
    counts = [0.0, *[PROMPT_WEIGHT] * (len(prompt_ids) - 1), *[1.0] * (len(reply_ids) + 1)]
    return [*prompt_ids, *reply_ids, EOS], counts


def collate(rows: list[Row]) -> Batch:
    """Right-padded ids and, for each, how much predicting it counts."""
    longest = max(len(ids) for ids, _ in rows)
    batch = torch.full((len(rows), longest), PAD)
    weights = torch.zeros(len(rows), longest)
    for row, (ids, counts) in enumerate(rows):
        batch[row, : len(ids)] = torch.tensor(ids)
        weights[row, : len(ids)] = torch.tensor(counts)
    return {"input_ids": batch}, weights


def exact(model: PreTrainedModel, batch: Batch) -> list[bool]:
    """Whether each row's tokens that count fully are the most likely ones after those before them."""
    inputs, weights = batch
    best = model(**inputs, use_cache=False).logits[:, :-1].argmax(-1)
    return ((best == inputs["input_ids"][:, 1:]) | (weights[:, 1:] < 1.0)).all(1).tolist()


def shares(marks: list[tuple[str, bool]]) -> dict[str, float]:
    """(kind, whether it was right) of each question → share of right ones, by kind and as "all"."""
    kinds = list(dict.fromkeys(kind for kind, _ in marks))
    right = {kind: [mark for of, mark in marks if of == kind] for kind in kinds} | {"all": [mark for _, mark in marks]}
    return {kind: sum(known) / len(known) for kind, known in right.items()}


def batches(
    tokenizer: PreTrainedTokenizerFast, size: int, seed: int = 1, kinds: Sequence[str] = MIX, lesson: Lesson = questions
) -> Iterator[Batch]:
    """Endless fresh training batches, always in the same order for one seed; a kind named twice is asked twice."""
    for pool_seed in itertools.count(seed):
        pool = lesson(pool_seed, size * _POOL, kinds=kinds)
        rows = sorted((encode(tokenizer, question) for question in pool), key=lambda row: len(row[0]))
        order = torch.randperm(_POOL, generator=torch.Generator().manual_seed(pool_seed)).tolist()
        for part in order:
            yield collate(rows[part * size : (part + 1) * size])


@torch.no_grad()
def accuracy(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    count: int = 500,
    seed: int = 0,
    lesson: Lesson = questions,
) -> dict[str, float]:
    """Share of held-out questions answered exactly, for each kind and for all ("all")."""
    asked = lesson(seed, count, split="heldout")
    marks: list[tuple[str, bool]] = []
    model.eval()
    for at in range(0, count, 50):
        part = asked[at : at + 50]
        right = exact(model, collate([encode(tokenizer, question) for question in part]))
        marks += zip((question.kind for question in part), right, strict=True)
    model.train()
    return shares(marks)
