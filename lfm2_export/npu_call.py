"""The NPU's calling convention: what a host feeds to a method of static shape, and what it writes back.

An artifact has two methods over the same state, `decode` for one token and `prefill` for a chunk of N. Both take, in
this order and batch 1:

- `tokens [1, N] int32`, right-padded with any id;
- `position [1] int32`, tokens already seen; `length [1] int32`, valid tokens of this call;
- `mask [1, 1, N, window + N] float32`, added to attention's scores: 0 where a row may look, `MASKED` elsewhere.
  The first `window` columns are the cache, the rest this call's tokens;
- the state: conv states `[1, L-1, hidden]`, keys and values `[1, kv_heads, window, head_dim]`, float32.

They return logits `[1, 1, vocab]` of the last valid token, whole new conv states, and of keys and values only this
call's `[1, kv_heads, N, head_dim]`, whose first `length` columns the host writes at `position`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from lfm2_export.checkpoint.config import LFM2Config
from lfm2_export.model.state import State, is_cache, state_shapes

DECODE, PREFILL = "decode", "prefill"
MASKED = -100.0  # exp() of it is far below a 16-bit step, and a 16-bit scale still has room for the scores


def native_state(config: LFM2Config, window: int) -> State:
    """A new conversation's state in the NPU's layout: conv states are transposed, columns before channels."""
    return {
        name: torch.zeros(shape if is_cache(name) else (shape[0], shape[2], shape[1]))
        for name, shape in state_shapes(config, window).items()
    }


def call_inputs(tokens: Sequence[int], rows: int, position: int, window: int, state: State) -> tuple[Tensor, ...]:
    """A call's inputs, for at most `rows` tokens at `position`. The state tensors are passed on, not copied."""
    ids = torch.zeros(1, rows, dtype=torch.int32)
    ids[0, : len(tokens)] = torch.tensor(tokens, dtype=torch.int32)
    mask = torch.full((1, 1, rows, window + rows), MASKED)
    mask[..., :position] = 0
    mask[0, 0, :, window:].triu_(1)  # a row sees this call's tokens up to its own
    counts = (torch.tensor([count], dtype=torch.int32) for count in (position, len(tokens)))
    return (ids, *counts, mask, *state.values())


def write_back(state: State, new: Iterable[Tensor], position: int, length: int) -> None:
    """Take a call's new state over, in place."""
    for (name, tensor), piece in zip(state.items(), new, strict=True):
        if is_cache(name):
            tensor[:, :, position : position + length] = piece[:, :, :length]
        else:
            tensor.copy_(piece)
