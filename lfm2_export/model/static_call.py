"""The caller's side of a graph with fixed shapes: rows and columns that are not there yet are hidden by a mask.

A static method takes exactly N tokens over a window of exactly C columns. The caller owns the state, gives it whole,
and writes the new slices that come out at its position. Everything here is numpy, batch 1, fp32 unless said otherwise.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch

from lfm2_export.checkpoint.config import LFM2Config
from lfm2_export.model.layers import rotary
from lfm2_export.model.state import is_cache, state_shapes

Arrays = dict[str, np.ndarray]


def empty_static_state(config: LFM2Config, window: int) -> Arrays:
    """Zeros: caches `[1, kv_heads, window, head_dim]`, conv states `[1, L-1, hidden]` (time before channels)."""
    shapes = state_shapes(config, window).items()
    return {
        name: np.zeros(shape if is_cache(name) else (shape[0], shape[2], shape[1]), dtype=np.float32)
        for name, shape in shapes
    }


def static_inputs(config: LFM2Config, tokens: Sequence[int], position: int, rows: int, window: int) -> Arrays:
    """All inputs of a call but the state, for up to `rows` tokens at `position`.

    Right padding repeats the last token: whatever it computes is hidden from the valid rows and never written, and a
    real token's activations lie in calibrated ranges.
    """
    count = len(tokens)
    padded = [*tokens, *[tokens[-1]] * (rows - count)]
    cos, sin = rotary(torch.arange(position, position + rows).unsqueeze(0), config.head_dim, config.rope_theta)
    hidden = np.ones((1, 1, rows, window + rows), dtype=np.float32)
    hidden[..., :position] = 0
    hidden[..., window:] = np.triu(np.ones((rows, rows), dtype=np.float32), 1)
    inputs = {"tokens": np.array([padded], dtype=np.int32), "cos": cos.numpy(), "sin": sin.numpy(), "hidden": hidden}
    if rows > 1:
        inputs["last_row"] = np.array([count - 1], dtype=np.int32)
        inputs["conv_rows"] = np.arange(count, count + config.conv_L_cache - 1, dtype=np.int32)
    return inputs


def write_static_slices(state: Arrays, outputs: Mapping[str, np.ndarray], position: int, count: int) -> None:
    """Put a call's `new_…` outputs into the state, in place: conv states whole, `count` columns of each cache."""
    for name, tensor in state.items():
        new = outputs[f"new_{name}"]
        if is_cache(name):
            tensor[:, :, position : position + count] = new[:, :, :count]
        else:
            tensor[...] = new
