"""What is on trial, the text it is tried on, how much of it is measured, and what it must equal."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from itertools import chain, cycle, islice
from pathlib import Path

import numpy as np

from lfm2_export import targets
from lfm2_export.artifact.folder import Artifact
from lfm2_export.checkpoint.config import LFM2Config
from lfm2_export.checkpoint.nano import EMBEDDED
from lfm2_export.checkpoint.source import Checkpoint
from lfm2_export.checkpoint.tokenizer import ChatTokenizer
from lfm2_export.evaluate.text import EvaluationText, evaluation_text, random_ids, text_of_file
from lfm2_export.parity.cases import before_seam
from lfm2_export.parity.detail import Detail
from lfm2_export.parity.effort import Effort
from lfm2_export.progress import Progress, silent
from lfm2_export.quantize.scheme import QuantizationRule
from lfm2_export.recipes import Recipe


@dataclass
class Subject:
    """The artifact on trial, and the references it is judged against."""

    artifact: Artifact
    checkpoint: Checkpoint
    effort: Effort
    progress: Progress
    own_text: Path | None = None
    detail: Detail | None = None
    device: str = "cpu"  # where eager PyTorch computes, as torch spells it
    residual_stream: list[np.ndarray] | None = None  # of the quantized eager model, layer by layer, for a report

    def __post_init__(self) -> None:
        self.recipe = Recipe.model_validate(self.artifact.manifest.recipe)
        self.window = self.artifact.manifest.window
        self.config = self.checkpoint.config

    @property
    def rounds(self) -> bool:
        """Tell whether the recipe rounds any activation."""
        return any(rule.activation for rule in self.recipe.quantization)

    @property
    def half(self) -> bool:
        """Tell whether the artifact's graph is in fp16 throughout, so that it rounds every value."""
        return targets.find(self.artifact.manifest.target).half(self.recipe)

    @property
    def image_rule(self) -> QuantizationRule | None:
        """Return the rule that the image part's matrices are under."""
        return targets.capabilities(self.artifact.manifest.target).image_rule(self.recipe)

    @cached_property
    def tokenizer(self) -> ChatTokenizer | None:
        return ChatTokenizer.load(self.artifact.folder, self.config)

    @cached_property
    def text(self) -> EvaluationText:
        if self.own_text is not None:
            return text_of_file(self.own_text, self.tokenizer, self.window)
        return evaluation_text(self.config, self.tokenizer, self.window, self.effort.quality_tokens)

    @cached_property
    def tokens(self) -> tuple[int, ...]:
        """The beginning of the evaluation text."""
        return beginning(self.config, self.text)

    @property
    def spoken(self) -> tuple[int, ...]:
        """The tokens that a state law feeds."""
        return self.tokens[: min(self.window // 2, self.effort.law_tokens)]

    @property
    def before_spoken(self) -> tuple[int, ...]:
        """Text that a state law feeds first, so that a sliding window ends among its tokens, fed at most twice."""
        count = len(self.spoken)
        return self.long_text(min(before_seam(self.config, count), self.window - 2 * count))

    def long_text(self, count: int) -> tuple[int, ...]:
        """Evaluation text of `count` tokens, or of the window if that is less: one chat after the other, repeated."""
        return tuple(islice(cycle(chain.from_iterable(self.text.sequences)), min(count, self.window)))

    @property
    def has_tasks(self) -> bool:
        """The embedded models alone have questions with known answers."""
        return self.checkpoint.name in EMBEDDED and self.tokenizer is not None


def beginning(config: LFM2Config, text: EvaluationText) -> tuple[int, ...]:
    """Return a run of 48 tokens of a text."""
    joined = [token for tokens in text.sequences[:8] for token in tokens]
    return tuple(joined[:48]) if len(joined) >= 48 else random_ids(config, 48, seed=1)


def traced_text(artifact: Artifact, checkpoint: Checkpoint, count: int) -> tuple[int, ...]:
    """The first tokens of the evaluation text."""
    return Subject(artifact, checkpoint, Effort(quality_tokens=count), silent).long_text(count)
