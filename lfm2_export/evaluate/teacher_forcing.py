"""Many tokens, quickly: an eager model's logits after every token of many windows, several windows at once.

For an artifact itself see `quality.py`, token by token through its runtime. This is for its quantized eager model,
which question 1 proves it equal to.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch

from lfm2_export.evaluate.metrics import QuantizationLoss, compare_rows, joined, summary
from lfm2_export.model.decoder import Decoder
from lfm2_export.model.state import empty_state

_BATCH_TOKENS = 2048  # padding included

Windows = Sequence[tuple[int, ...]]


@torch.inference_mode()
def score(decoder: Decoder, windows: Windows) -> list[np.ndarray]:
    """Logits `[rows, vocab] fp32` per batch; a row for every token of a window but the last. See `targets`."""
    scores = []
    for part in batched(windows):
        longest = max(map(len, part)) - 1
        ids = torch.tensor([[*window[:-1], *[0] * (longest + 1 - len(window))] for window in part])
        valid = torch.arange(longest) < torch.tensor([[len(window) - 1] for window in part])
        start = torch.zeros(len(part), dtype=torch.long)
        logits, _ = decoder(ids, start, None, empty_state(decoder.config, 1, len(part)), all_logits=True)
        scores.append(logits[valid].numpy())
    return scores


def loss_of(actual: Sequence[np.ndarray], expected: Sequence[np.ndarray], windows: Windows) -> QuantizationLoss:
    """What lies between two models' scores of the same windows."""
    following = [np.array([token for window in part for token in window[1:]]) for part in batched(windows)]
    rows = [compare_rows(*each) for each in zip(actual, expected, following, strict=True)]
    return summary(joined(rows))


def batched(windows: Windows) -> Iterator[list[tuple[int, ...]]]:
    """The windows of at least two tokens as `score` takes them: by length, so that little is padding."""
    part: list[tuple[int, ...]] = []
    for window in sorted((window for window in windows if len(window) > 1), key=len):
        if part and len(window) * (len(part) + 1) > _BATCH_TOKENS:
            yield part
            part = []
        part.append(window)
    yield part
