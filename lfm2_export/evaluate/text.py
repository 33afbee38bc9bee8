"""Text to judge a model on: held-out chats of the nano generator, in the checkpoint's own template and tokenizer.

Plain English chat is a fair, if small, sample for any LFM2. A checkpoint without a tokenizer or template gets
random ids, and the report says so.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from pathlib import Path

from lfm2_export.checkpoint.config import LFM2Config
from lfm2_export.checkpoint.nano.tasks import Question, questions
from lfm2_export.checkpoint.tokenizer import ChatTokenizer
from lfm2_export.errors import UsageError
from lfm2_export.model.sequences import PORTION, TokenSequences, portions

_SEED = 2026


@dataclass(frozen=True)
class EvaluationText:
    """Token sequences for teacher forcing, and where they come from."""

    kind: str  # "held-out chats", "random ids" or the file's name
    sequences: list[tuple[int, ...]]

    @property
    def portions(self) -> list[TokenSequences]:
        """Return the sequences in as many portions as are read by themselves: one of held-out chats, many of a book."""
        return list(portions(self.sequences, PORTION))

    def part(self, portion: int) -> str:
        """Name a portion for who waits; nothing where there is one."""
        count = len(self.portions)
        return f"part {portion + 1} of {count}" if count > 1 else ""


def evaluation_text(
    config: LFM2Config, tokenizer: ChatTokenizer | None, window: int, tokens: int, seed: int = _SEED
) -> EvaluationText:
    """Return text with at least `tokens` tokens to predict, in sequences that fit the artifact's window."""
    if tokenizer is None or not tokenizer.has_template:
        length = min(64, window)
        count = -(-tokens // (length - 1))
        return EvaluationText("random ids", [random_ids(config, length, seed + i) for i in range(count)])
    count, sequences = 64, list[tuple[int, ...]]()
    while sum(len(each) - 1 for each in sequences) < tokens:  # the first token of a sequence is not predicted
        sequences = _chats(tokenizer, questions(seed, count, split="heldout"), window, tokens)
        count *= 2
    return EvaluationText("held-out chats", sequences)


def text_of_file(path: Path, tokenizer: ChatTokenizer | None, window: int) -> EvaluationText:
    """A UTF-8 file in sequences that fit. UsageError when it is missing, not text, or shorter than two tokens."""
    if tokenizer is None:
        raise UsageError(f"{path}: text needs the checkpoint's tokenizer, and it has none")
    try:
        ids = tokenizer.encode(path.read_text(encoding="utf-8"), add_special_tokens=True)
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise UsageError(f"{path}: not UTF-8 text") from error
    sequences = [tuple(ids[at : at + window]) for at in range(0, len(ids), window)]
    if not any(len(each) > 1 for each in sequences):
        raise UsageError(f"{path}: too short to predict anything")
    return EvaluationText(path.name, [each for each in sequences if len(each) > 1])


def random_ids(config: LFM2Config, count: int, seed: int) -> tuple[int, ...]:
    """Uniform token ids: all that a checkpoint without a tokenizer can be asked."""
    chooser = random.Random(seed)
    return tuple(chooser.randrange(config.vocab_size) for _ in range(count))


def _chats(tokenizer: ChatTokenizer, asked: list[Question], window: int, tokens: int) -> list[tuple[int, ...]]:
    """Chats in full, cut to `window`, until there are `tokens` to predict."""
    sequences: list[tuple[int, ...]] = []
    for question in asked:
        if sum(len(each) - 1 for each in sequences) >= tokens:
            break
        turns = [*question.messages, {"role": "assistant", "content": question.answer}]
        text = tokenizer.render(turns, tools=question.tools or None, add_generation_prompt=False)
        sequences.append(tuple(tokenizer.encode(text)[:window]))
    return sequences
