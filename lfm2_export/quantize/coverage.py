"""Which tokens of the calibration each expert saw, and whether they were enough to round its matrices by.

A router sends most tokens elsewhere, so an expert sees a share of the text, and some experts next to none of it. A
matrix rounded for a handful of tokens would suit those and no others, so it is rounded by its weights alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from lfm2_export.checkpoint.config import LFM2Config
from lfm2_export.model.decoder import Decoder
from lfm2_export.quantize.streams import Stream

TOKENS = ".tokens"  # the end of a record's name for the counts of a layer's experts
_ENOUGH = 8  # inputs of a matrix for each of which there must be a token


class RoutedInputs(NamedTuple):
    """What a layer's experts are called with, all tokens of the calibration in a row."""

    quantized: Tensor  # [tokens, H]
    exact: Tensor  # [tokens, H], the same tokens in the exact model, whatever its own router chose
    chosen: Tensor  # [tokens, k], by the quantized model

    def of(self, expert: int) -> tuple[Tensor, Tensor]:
        """The tokens that chose one expert, `[those, H]` in either model."""
        here = (self.chosen == expert).any(-1)
        return self.quantized[here], self.exact[here]


def routed_inputs(streams: Sequence[Stream], decoders: Sequence[Decoder], layer: int, path: str) -> RoutedInputs:
    """Return the inputs of that layer's experts at `path`, in the quantized model and in the exact one."""
    ours, theirs = (list(s.calls(decoder, layer, path)) for s, decoder in zip(streams, decoders, strict=True))
    quantized, exact = (torch.cat([x for x, *_ in calls]) for calls in (ours, theirs))
    return RoutedInputs(quantized, exact, torch.cat([chosen for *_, chosen in ours]))


def covers(tokens: int, inputs: int) -> bool:
    """Return whether so many tokens are enough to round a matrix of so many inputs by."""
    return tokens * _ENOUGH >= inputs


def seen_by(path: str) -> str:
    """The record's name for how many tokens chose each of the experts at `path`, `[experts] int64`."""
    return path + TOKENS


def uncovered(record: Mapping[str, Tensor], config: LFM2Config, within: str = "") -> str:
    """Return the experts that saw too few tokens for some of their matrices, with the number they saw; "" if none."""
    widest = max(config.hidden_size, config.moe_intermediate_size)
    found = [
        f"{name.removesuffix(TOKENS)}.{number} ({tokens} tokens)"
        for name, counts in sorted(record.items())
        if name.endswith(TOKENS) and name.startswith(within)
        for number, tokens in enumerate(counts.tolist())
        if not covers(tokens, widest)
    ]
    return ", ".join(found)
