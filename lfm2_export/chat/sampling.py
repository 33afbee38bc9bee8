"""From logits to a token: the samplers that `chat` offers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

Sampler = Callable[[np.ndarray, Sequence[int]], int]


def greedy(logits: np.ndarray, seen: Sequence[int]) -> int:
    """The most likely token, lowest id first among equals."""
    return int(np.argmax(logits))


@dataclass
class MinPSampler:
    """Temperature, min-p (Nguyen et al. 2024, arXiv:2407.01082) and repetition penalty (arXiv:1909.05858).

    LFM2's model cards recommend temperature 0.3, min_p 0.15, repetition_penalty 1.05.
    """

    temperature: float = 0.3
    min_p: float = 0.15
    repetition_penalty: float = 1.05
    seed: int = 0

    def __post_init__(self) -> None:
        self._random = np.random.default_rng(self.seed)

    def __call__(self, logits: np.ndarray, seen: Sequence[int]) -> int:
        scores = logits.astype(np.float64)
        repeated = np.unique(np.asarray(seen, dtype=np.int64))
        penalized = scores[repeated]
        scores[repeated] = np.where(
            penalized > 0, penalized / self.repetition_penalty, penalized * self.repetition_penalty
        )
        scores = np.exp((scores - scores.max()) / self.temperature)
        scores[scores < self.min_p * scores.max()] = 0
        return int(self._random.choice(scores.size, p=scores / scores.sum()))
