"""What the window costs: bytes of state, and the KLD of a KV cache in fewer bits with everything else in fp32."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import takewhile
from typing import NamedTuple

import torch

from lfm2_export.checkpoint.config import LFM2Config
from lfm2_export.evaluate.teacher_forcing import loss_of, score
from lfm2_export.model.decoder import Decoder
from lfm2_export.model.state import cache_bytes, is_cache, state_shapes
from lfm2_export.quantize.apply import round_caches

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


def cache_figures(exact: Decoder, precision: str, window: int, text: Sequence[tuple[int, ...]]) -> CacheFigures:
    """Measured on the first sequences of `text`; the fp32 decoder is left as it was."""
    sizes = bytes_of(exact.config, window, precision)
    sequences = _first(text, _TOKENS)
    kld = 0.0
    if precision != "float32" and cache_bytes(exact.config, precision):
        expected = score(exact, sequences)
        kld = loss_of(score(round_caches(exact, precision), sequences), expected, sequences).mean_kld
        round_caches(exact, "float32")
    return CacheFigures(precision, window, *sizes, mean_kld=kld, tokens=sum(len(each) - 1 for each in sequences))


def bytes_of(config: LFM2Config, window: int, precision: str) -> tuple[int, int, int, int]:
    """Bytes per token, of the window, saved against fp32, and of the conv states."""
    per_token, exactly = cache_bytes(config, precision), cache_bytes(config, "float32")
    columns = sum(math.prod(shape) for name, shape in state_shapes(config, window).items() if not is_cache(name))
    return per_token, per_token * window, (exactly - per_token) * window, columns * torch.float32.itemsize


def _first(text: Sequence[tuple[int, ...]], tokens: int) -> list[tuple[int, ...]]:
    """The first sequences, and at least one, of about so many tokens in all."""
    ends = [sum(len(each) for each in text[: at + 1]) for at in range(len(text))]
    return list(text[: 1 + len(list(takewhile(lambda end: end < tokens, ends)))])
