"""The state contract: names and shapes of everything an LFM2 carries from one call to the next.

A state is a plain `dict[str, Tensor]` in the order of `state_shapes`, so that a traced graph's inputs,
a manifest and a runtime's buffers all speak the same names:

- `conv_state.i  [B, hidden, L-1]`: the last L-1 columns of `B⊙x` of conv layer i (L = `conv_L_cache`);
- `key.i`, `value.i  [B, kv_heads, S, head_dim]`: attention layer i, RoPE applied, S = window;
- `sliding_key.i`, `sliding_value.i  [B, kv_heads·head_dim, W-1]`: the last W-1 keys and values of sliding attention
  layer i, RoPE applied, W = `sliding_window`, whatever S is.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from lfm2_export.checkpoint.config import LFM2Config
from lfm2_export.model.block import LAYERS

State = dict[str, Tensor]

FLOAT_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def state_shapes(config: LFM2Config, window: int, batch: int = 1) -> dict[str, tuple[int, ...]]:
    """Shape of every state tensor, by name, in graph order (layer by layer).

    With `window` = T these are also the shapes of the new slices that a call of T tokens returns.
    """
    return {
        f"{name}.{layer}": (batch, *shape)
        for layer, kind in enumerate(config.layer_types)
        for name, shape in LAYERS[kind].state_shapes(config, window).items()
    }


def empty_state(
    config: LFM2Config,
    window: int,
    batch: int = 1,
    dtype: torch.dtype = torch.float32,
    device: torch.device | None = None,
) -> State:
    """The state of a new conversation: all zeros."""
    shapes = state_shapes(config, window, batch)
    return {name: torch.zeros(shape, dtype=dtype, device=device) for name, shape in shapes.items()}


def is_cache(name: str) -> bool:
    """Return whether a state tensor is a KV cache (written at a position) and not one that each call replaces whole."""
    return not name.startswith(("conv_state.", "sliding_"))


def cache_bytes(config: LFM2Config, precision: str) -> int:
    """Return the bytes of all keys and values for one token of the window, in one of `FLOAT_DTYPES`."""
    values = sum(math.prod(shape) for name, shape in state_shapes(config, 1).items() if is_cache(name))
    return values * FLOAT_DTYPES[precision].itemsize


def write_slices(state: State, new: State, position: Tensor, length: Tensor) -> None:
    """Write a call's results into the state, in place, as the caller of the `slice` transport does.

    Other states are replaced; of each new key and value, row b's first `length[b]` columns are written at
    `position[b]`. `position` and `length` are `[B] int64`.
    """
    for name, tensor in new.items():
        if not is_cache(name):
            state[name].copy_(tensor)
            continue
        for row, (start, count) in enumerate(zip(position.tolist(), length.tolist(), strict=True)):
            state[name][row, :, start : start + count] = tensor[row, :, :count]
