"""What the window costs: bytes of state, and the KLD of a KV cache in fewer bits with everything else in fp32."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import torch

from lfm2_export.checkpoint.config import LFM2Config
from lfm2_export.evaluate.exact import Exact
from lfm2_export.evaluate.metrics import compare_rows, joined, summary
from lfm2_export.model.sequences import TokenSequences, pieces, portions
from lfm2_export.model.state import cache_bytes, is_cache, state_shapes

_TOKENS = 1000  # enough: so small an effect shows on every token


class CacheFigures(NamedTuple):
    """One window's state."""

    precision: str  # of keys and values; conv states are fp32
    window: int  # tokens
    bytes_per_token: int  # a longer window costs this for each token
    window_bytes: int  # of all keys and values
    saved_bytes: int  # against fp32 ones
    conv_bytes: int  # of all conv states, however long the window
    mean_kld: float  # nats per token, against fp32, of the cache alone; 0 for fp32 itself
    tokens: int


def first_sequences(text: TokenSequences) -> TokenSequences:
    """Return what the cache is measured on: the first sequences, at least one, of about a thousand tokens in all."""
    return next(portions(text, _TOKENS))


def cache_figures(
    config: LFM2Config,
    precision: str,
    window: int,
    sequences: TokenSequences,
    exact: Exact,
    rounded: Exact | None,
) -> CacheFigures:
    """Return the figures of a window, from two readings of `sequences`: in fp32, and with that cache; None for fp32's.

    An fp32 cache costs nothing.
    """
    if rounded is None:
        tokens = sum(len(sequence) - 1 for sequence in sequences)
        return CacheFigures(precision, window, *bytes_of(config, window, precision), 0.0, tokens)
    found = [
        compare_rows(
            rounded.logits(number, start, stop).numpy(),
            exact.logits(number, start, stop).numpy(),
            np.array(sequence[start + 1 : stop + 1]),
        )
        for number, sequence in enumerate(sequences)
        for start, stop in pieces(len(sequence) - 1)
    ]
    loss = summary(joined(found))
    return CacheFigures(precision, window, *bytes_of(config, window, precision), loss.mean_kld, loss.tokens)


def bytes_of(config: LFM2Config, window: int, precision: str) -> tuple[int, int, int, int]:
    """Bytes per token, of the window, saved against fp32, and of the conv states."""
    per_token, exactly = cache_bytes(config, precision), cache_bytes(config, "float32")
    columns = sum(math.prod(shape) for name, shape in state_shapes(config, window).items() if not is_cache(name))
    return per_token, per_token * window, (exactly - per_token) * window, columns * torch.float32.itemsize
