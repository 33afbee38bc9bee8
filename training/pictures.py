"""Turns the questions about drawn pictures into batches, and scores a model on held-out ones.

All pictures of a batch have one grid, so nothing of them is padded. Every reply of a conversation is learned, not the
last one alone. nano's own questions come in between, lest the decoder forget them.
"""

import itertools
import random
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from data import Batch, Row, batches, collate, exact, shares
from tokenizer import EOS
from transformers import PreTrainedModel, PreTrainedTokenizerFast
from vision import processed

from lfm2_export.checkpoint.nano_vl.drawing import draw
from lfm2_export.checkpoint.nano_vl.patches import IMAGE, text_of
from lfm2_export.checkpoint.nano_vl.scenes import GRIDS, Scene
from lfm2_export.checkpoint.nano_vl.tasks import PictureQuestion, picture_questions

# what is learned late is asked more often
MIX = ("position", "count", "position", "color", "position", "shape", "count", "position", "digits")
_POOL = 8  # batches cut from one pool sorted by length, before each one of nano's questions


def encode(tokenizer: PreTrainedTokenizerFast, question: PictureQuestion, every_reply: bool = True) -> Row:
    """Token ids of the whole conversation; what counts is every reply of it, or the last one."""
    prompt = tokenizer.apply_chat_template(question.messages, add_generation_prompt=True, tokenize=False)
    shown = prompt.replace(IMAGE, text_of(*question.scene.grid))
    ids = tokenizer(f"{shown}{question.answer}{tokenizer.eos_token}", add_special_tokens=False).input_ids
    begin = tokenizer("<|im_start|>assistant\n", add_special_tokens=False).input_ids
    counts, replying = [], 0.0
    for at, token in enumerate(ids):
        counts.append(replying)
        if token == EOS:
            replying = 0.0
        elif ids[at + 1 - len(begin) : at + 1] == begin:
            replying = 1.0
            if not every_reply:
                counts = [0.0] * len(counts)
    return ids, counts


def look(scenes: list[Scene]) -> dict[str, torch.Tensor]:
    """What the model is called with for the pictures of scenes of one grid."""
    return processed(np.stack([np.asarray(draw(scene)) for scene in scenes]))


def picture_batches(
    tokenizer: PreTrainedTokenizerFast, size: int, seed: int, text_kinds: Sequence[str]
) -> Iterator[Batch]:
    """Endless fresh training batches, always in the same order for one seed."""
    text = batches(tokenizer, size // 2, seed, text_kinds)
    for pool_seed in itertools.count(seed):
        rng = random.Random(pool_seed)
        pool = picture_questions(pool_seed, size * _POOL, kinds=MIX, grids=(rng.choice(GRIDS),))
        rows = [(encode(tokenizer, question), question.scene) for question in pool]
        rows.sort(key=lambda row: len(row[0][0]))
        for part in rng.sample(range(_POOL), _POOL):
            chosen = rows[part * size : (part + 1) * size]
            inputs, weights = collate([row for row, _ in chosen])
            yield inputs | look([scene for _, scene in chosen]), weights
        yield next(text)


@torch.no_grad()
def picture_accuracy(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, count: int = 500, seed: int = 0
) -> dict[str, float]:
    """Share of held-out questions about pictures answered exactly, for each kind and for all ("all")."""
    asked = sorted(picture_questions(seed, count, "heldout"), key=lambda question: question.scene.grid)
    marks: list[tuple[str, bool]] = []
    model.eval()
    for _, same in itertools.groupby(asked, key=lambda question: question.scene.grid):
        questions = list(same)
        for at in range(0, len(questions), 50):
            part = questions[at : at + 50]
            inputs, weights = collate([encode(tokenizer, question, every_reply=False) for question in part])
            right = exact(model, (inputs | look([question.scene for question in part]), weights))
            marks += zip((question.kind for question in part), right, strict=True)
    model.train()
    return dict(sorted(shares(marks).items()))
