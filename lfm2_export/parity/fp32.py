"""What fp32 reads for question 2, before or while other work is done: all text, or a long one's first portion."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

from lfm2_export.artifact.manifest import Extent
from lfm2_export.checkpoint.config import LFM2Config
from lfm2_export.checkpoint.source import Checkpoint
from lfm2_export.checkpoint.tokenizer import ChatTokenizer
from lfm2_export.evaluate.exact import Exact, Reading, read_exactly
from lfm2_export.evaluate.text import EvaluationText, evaluation_text
from lfm2_export.parity.beside import Beside
from lfm2_export.parity.cache import first_sequences
from lfm2_export.parity.effort import effort_of
from lfm2_export.parity.subject import beginning
from lfm2_export.recipes import Recipe


class Asked(NamedTuple):
    """What fp32 reads: text, a part of it once more over a narrow KV cache, and tokens to show layer by layer."""

    sequences: tuple[tuple[int, ...], ...]
    narrow: str | None  # see `narrow_cache`
    layers_of: tuple[tuple[int, ...], ...]

    def read(self, checkpoint: Checkpoint, device: str, advance: Callable[[], None]) -> list[Exact]:
        """Return what is read, one after the other; `advance` is called after each layer."""
        readings = [Reading(self.sequences)]
        readings += [Reading(first_sequences(self.sequences), self.narrow)] if self.narrow else []
        return read_exactly(checkpoint, readings, self.layers_of, device, advance)


def asked_of_fp32(checkpoint: Checkpoint, recipe: Recipe, text: EvaluationText, in_detail: bool) -> Asked:
    """Return what a proof compares an artifact of a recipe with; of a long text the first portion."""
    shown = (beginning(checkpoint.config, text)[: recipe.window],) if in_detail else ()
    return Asked(tuple(text.portions[0]), narrow_cache(recipe, checkpoint.config), shown)


def narrow_cache(recipe: Recipe, config: LFM2Config) -> str | None:
    """Return the KV cache's precision; None where it is fp32's or there is no cache."""
    cache = recipe.cache if config.attention_layers else "float32"
    return None if cache == "float32" else cache


def read_ahead(
    checkpoint: Checkpoint, recipe: Recipe, tokenizer: ChatTokenizer | None, effort: Extent, in_detail: bool
) -> Beside:
    """Return the reading that a proof of an artifact still to be lowered will ask for.

    Where a processor is emulated it will ask for less, and this one is abandoned.
    """
    text = evaluation_text(checkpoint.config, tokenizer, recipe.window, effort_of(effort, ()).quality_tokens)
    return beside(checkpoint, asked_of_fp32(checkpoint, recipe, text, in_detail), "cpu")


def beside(checkpoint: Checkpoint, asked: Asked, device: str) -> Beside:
    """Return a reading that can go on beside other work."""
    return Beside(partial(asked.read, checkpoint, device), asked)
