"""A checkpoint on trial: what it is calibrated on, what it is judged on, and what fp32 says to that."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from lfm2_export.checkpoint.nano.tasks import questions
from lfm2_export.checkpoint.tokenizer import ChatTokenizer
from lfm2_export.evaluate.questions import answered
from lfm2_export.evaluate.teacher_forcing import loss_of, score
from lfm2_export.evaluate.text import evaluation_text, text_of_file
from lfm2_export.model.decoder import Decoder
from lfm2_export.model.load import load_decoder, open_checkpoint
from lfm2_export.model.sequences import TokenSequences
from lfm2_export.progress import Progress
from lfm2_export.quantize.apply import load_quantized
from lfm2_export.quantize.calibrated import load_calibrated
from lfm2_export.quantize.calibration import Calibration, calibration_sequences
from lfm2_export.quantize.method import CALIBRATED, Method
from lfm2_export.quantize.size import model_bytes
from lfm2_export.quantize.unpack import unpack
from lfm2_export.recipes import Recipe

_SEED = 501  # of the held-out questions
LONGEST = 1024  # tokens of a sequence

Read = Callable[[TokenSequences], list[np.ndarray]]  # as `score` does: logits of each batch


class Trial:
    """One checkpoint, and everything that whatever is made of it is judged by."""

    def __init__(
        self, source: str, windows: int, tokens: int, asked: int, text: Path | None, progress: Progress
    ) -> None:
        """Read fp32 of at least `tokens` tokens, or of a text; calibrate on `windows` of the model's own replies."""
        self.checkpoint = open_checkpoint(source)
        config = self.checkpoint.config
        self.tokenizer = ChatTokenizer.load(self.checkpoint.folder, config)
        progress("calibration text")
        self.seen = calibration_sequences(Calibration(windows=windows), self.checkpoint, self.tokenizer)
        limit = min(LONGEST, config.max_position_embeddings)
        self.judged = (
            text_of_file(text, self.tokenizer, limit)
            if text
            else evaluation_text(config, self.tokenizer, limit, tokens)
        )
        progress("fp32")
        self.exact = load_decoder(self.checkpoint)
        self.expected = score(self.exact, self.judged.sequences)
        self.held_out = questions(_SEED, asked, split="heldout") if self.tokenizer and text is None else []

    def begin(self) -> dict[str, Any]:
        """Return what a result says of the trial itself, with no rows yet."""
        return {
            "checkpoint": self.checkpoint.name,
            "parameters": sum(parameter.numel() for parameter in self.exact.parameters()),
            "text": self.judged.kind,
            "calibration_tokens": sum(map(len, self.seen)),
            "questions": len(self.held_out),
            "fp32_accuracy": self._accuracy(partial(score, self.exact)),
            "rows": [],
        }

    def judge(self, read: Read) -> dict[str, Any]:
        """Return what lies between a model and fp32 on the text, and its answers to the questions."""
        loss = loss_of(read(self.judged.sequences), self.expected, self.judged.sequences)
        return asdict(loss) | {"accuracy": self._accuracy(read)}

    def row(self, recipe: Recipe, way: Method) -> dict[str, Any]:
        """Return the figures of the checkpoint under a recipe, its integers chosen in that way."""
        begun = time.process_time()
        decoder = unpack(self._quantized(recipe, way))
        row: dict[str, Any] = {
            "recipe": recipe.name,
            "weights": way,
            "cpu_seconds": round(time.process_time() - begun, 1),
            "bytes": model_bytes(self.checkpoint.config, recipe.quantization),
        }
        return row | self.judge(partial(score, decoder))

    def _accuracy(self, read: Read) -> dict[str, float] | None:
        return answered(read, self.tokenizer, self.held_out) if self.tokenizer and self.held_out else None

    def _quantized(self, recipe: Recipe, way: Method) -> Decoder:
        rules, cache = recipe.quantization, recipe.cache
        if way in CALIBRATED:
            return load_calibrated(self.checkpoint, rules, cache, way, self.seen)[0]
        return load_quantized(self.checkpoint, rules, cache, way)
