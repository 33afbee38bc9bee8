"""Turns the nano questions into token batches, and scores a model on held-out ones.

A batch is padded on the right only: attention and convolutions are causal, so padding after the text
cannot reach it and needs no mask. The score is exact match of the whole reply under greedy decoding,
found in one pass: greedy decoding gives the wanted reply if and only if every token of it, end marker
included, is the most likely one after the tokens before it.
"""

import itertools
import json
import re
from collections.abc import Iterator, Sequence

import torch
from tokenizer import EOS, PAD
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from lfm2_export.checkpoint.nano.tasks import KINDS, Question, questions

PROMPT_WEIGHT = 0.1  # the prompt is mostly random, but its regular parts teach copying early
_POOL = 16  # batches cut from one pool sorted by length, so that little is padding
_ROLES = "\nsystem\nuser\nassistant\ntool\nList of tools: ["

MIX = ("recall", "tool", "pattern", "recall", "tool", "chat")  # what is learned late is asked more often

Row = tuple[list[int], int]
Batch = tuple[torch.Tensor, torch.Tensor]


def texts(asked: list[Question]) -> Iterator[str]:
    """The plain text a tokenizer meets between special tokens."""
    for question in asked:
        yield _ROLES
        yield from (json.dumps(tool) for tool in question.tools)
        for said in (*(message["content"] for message in question.messages), question.answer):
            yield from filter(None, re.split(r"<\|\w+\|>", said))


def encode(tokenizer: PreTrainedTokenizerFast, question: Question) -> Row:
    """Token ids of prompt, reply and end marker, and where the reply begins."""
    prompt = tokenizer.apply_chat_template(
        question.messages, tools=question.tools or None, add_generation_prompt=True, tokenize=False
    )
    prompt_ids = tokenizer(prompt, add_special_tokens=False).input_ids
    reply_ids = tokenizer(question.answer, add_special_tokens=False).input_ids
    return [*prompt_ids, *reply_ids, EOS], len(prompt_ids)


def collate(rows: list[Row]) -> Batch:
    """Right-padded ids and, for each, how much predicting it counts."""
    longest = max(len(ids) for ids, _ in rows)
    batch = torch.full((len(rows), longest), PAD)
    weights = torch.zeros(len(rows), longest)
    for row, (ids, begin) in enumerate(rows):
        batch[row, : len(ids)] = torch.tensor(ids)
        weights[row, 1:begin] = PROMPT_WEIGHT
        weights[row, begin : len(ids)] = 1.0
    return batch, weights


def batches(
    tokenizer: PreTrainedTokenizerFast, size: int, seed: int = 1, kinds: Sequence[str] = MIX
) -> Iterator[Batch]:
    """Endless fresh training batches, always in the same order for one seed; a kind named twice is asked twice."""
    for pool_seed in itertools.count(seed):
        pool = questions(pool_seed, size * _POOL, kinds=kinds)
        rows = sorted((encode(tokenizer, question) for question in pool), key=lambda row: len(row[0]))
        order = torch.randperm(_POOL, generator=torch.Generator().manual_seed(pool_seed)).tolist()
        for part in order:
            yield collate(rows[part * size : (part + 1) * size])


@torch.no_grad()
def accuracy(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, count: int = 500, seed: int = 0
) -> dict[str, float]:
    """Share of held-out questions answered exactly, for each kind and for all ("all")."""
    asked = questions(seed, count, split="heldout")
    right: dict[str, list[bool]] = {kind: [] for kind in KINDS}
    model.eval()
    for at in range(0, count, 50):
        part = asked[at : at + 50]
        batch, weights = collate([encode(tokenizer, question) for question in part])
        best = model(input_ids=batch, use_cache=False).logits[:, :-1].argmax(-1)
        exact = ((best == batch[:, 1:]) | (weights[:, 1:] < 1.0)).all(1).tolist()
        for question, correct in zip(part, exact, strict=True):
            right[question.kind].append(correct)
    model.train()
    scores = {kind: sum(marks) / len(marks) for kind, marks in right.items()}
    return {**scores, "all": sum(map(sum, right.values())) / count}
