"""The tokens that quantization is calibrated on: read from a file, or written by the checkpoint itself.

A static scale, or GPTQ's choice, is only as good as the text it was made on. The tokens travel with the artifact
(`calibration.json`), so that anyone can see what it was made on, and parity repeat static quantization.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from lfm2_export.checkpoint.config import LFM2Config
from lfm2_export.checkpoint.nano.tasks import questions
from lfm2_export.checkpoint.source import Checkpoint
from lfm2_export.checkpoint.tokenizer import ChatTokenizer
from lfm2_export.errors import ArtifactError, RecipeError
from lfm2_export.model.load import load_decoder
from lfm2_export.model.sequences import TokenSequences
from lfm2_export.progress import Progress, silent
from lfm2_export.quantize.own_text import continued

FILE = "calibration.json"
_SEED = 77  # of the prompts for "self"; they are training questions, parity asks held-out ones
_MAX_BYTES = 64 << 20


class Calibration(BaseModel):
    """A recipe's `calibration`: whose tokens, how many, and what the ranges are chosen by.

    `source`: "self" is the checkpoint's own greedy replies to short chats, through its chat template; "text" a UTF-8
    file; "tokens" a JSON file, one list of ids or a list of such lists. The observer sees every activation:
    "min-max" keeps the extremes, "percentile" cuts outliers, "mse" takes the range with the least squared error.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    source: Literal["self", "text", "tokens"] = "self"
    file: str | None = None
    windows: int = Field(default=24, ge=1)
    tokens: int = Field(default=128, ge=2)  # most in one window
    observer: Literal["min-max", "percentile", "mse"] = "min-max"
    percentile: float = Field(default=99.99, gt=50, le=100)  # of the values kept, for the observer of that name

    @model_validator(mode="after")
    def _file_where_one_is_read(self) -> Calibration:
        if (self.source == "self") != (self.file is None):
            need = "has no file" if self.source == "self" else "needs a file"
            raise ValueError(f"calibration source {self.source!r} {need}")
        return self


def calibration_sequences(
    wanted: Calibration, checkpoint: Checkpoint, tokenizer: ChatTokenizer | None, progress: Progress = silent
) -> TokenSequences:
    """The token sequences for this checkpoint; the same arguments give the same sequences.

    Raises RecipeError for a missing tokenizer or template, and a file that is missing, empty, malformed or outside
    the vocabulary.
    """
    if wanted.source == "self":
        return _own_text(wanted, checkpoint, tokenizer, progress)
    path = Path(str(wanted.file))
    if not path.is_file():
        raise RecipeError(f"calibration.file: {path}: no such file")
    if path.stat().st_size > _MAX_BYTES:
        raise RecipeError(f"calibration.file: {path}: larger than {_MAX_BYTES >> 20} MiB, far more than needed")
    runs = [_text(path, tokenizer)] if wanted.source == "text" else _token_lists(path, checkpoint.config)
    sequences = [run[at : at + wanted.tokens] for run in runs for at in range(0, len(run), wanted.tokens)]
    kept = tuple(tuple(tokens) for tokens in sequences if len(tokens) > 1)[: wanted.windows]
    if not kept:
        raise RecipeError(f"calibration.file: {path}: holds no window of at least two tokens")
    return kept


def digest(sequences: TokenSequences) -> str:
    """Hex SHA-256 over the token ids and where they are cut."""
    return hashlib.sha256(_document(sequences).encode()).hexdigest()


def write_sequences(folder: Path, sequences: TokenSequences) -> None:
    """Write `calibration.json` into an artifact folder."""
    (folder / FILE).write_bytes(_document(sequences).encode())


def read_sequences(folder: Path, config: LFM2Config) -> TokenSequences:
    """The sequences of an artifact folder. ArtifactError when it is missing or not what `write_sequences` wrote."""
    path = folder / FILE
    if not path.is_file():
        raise ArtifactError(f"{path}: missing, and this artifact's quantization cannot be repeated without it")
    try:
        return tuple(tuple(run) for run in _token_lists(path, config))
    except RecipeError as error:
        raise ArtifactError(str(error)) from error


def _document(sequences: TokenSequences) -> str:
    return json.dumps([list(tokens) for tokens in sequences], separators=(",", ":")) + "\n"


def _own_text(
    wanted: Calibration, checkpoint: Checkpoint, tokenizer: ChatTokenizer | None, progress: Progress
) -> TokenSequences:
    if tokenizer is None or not tokenizer.has_template:
        raise RecipeError(
            f"calibration: source 'self' needs the checkpoint's tokenizer and chat template, {checkpoint.folder} has "
            "not both; use source: text or tokens, with a file"
        )
    prompts = []
    for question in questions(_SEED, wanted.windows, split="train"):
        prompt = tokenizer.encode(tokenizer.render(question.messages, tools=question.tools or None))
        prompts.append(prompt[: wanted.tokens])
    return continued(load_decoder(checkpoint), prompts, tokenizer.eos_ids, wanted.tokens, progress)


def _text(path: Path, tokenizer: ChatTokenizer | None) -> list[int]:
    if tokenizer is None:
        raise RecipeError("calibration: source 'text' needs the checkpoint's tokenizer; use source: tokens")
    try:
        return tokenizer.encode(path.read_text(encoding="utf-8"), add_special_tokens=True)
    except UnicodeDecodeError as error:
        raise RecipeError(f"calibration.file: {path}: not UTF-8 text") from error


def _token_lists(path: Path, config: LFM2Config) -> list[list[int]]:
    try:
        document = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise RecipeError(f"calibration: {path}: not valid JSON: {str(error).splitlines()[0]}") from error
    runs = document if isinstance(document, list) and all(isinstance(run, list) for run in document) else [document]
    for run in runs:
        if not isinstance(run, list) or not all(type(token) is int for token in run):
            raise RecipeError(f"calibration: {path}: expected a list of token ids, or a list of such lists")
        outside = next((token for token in run if not 0 <= token < config.vocab_size), None)
        if outside is not None:
            raise RecipeError(
                f"calibration: {path}: token id {outside} is outside the vocabulary of {config.vocab_size}"
            )
    return runs
