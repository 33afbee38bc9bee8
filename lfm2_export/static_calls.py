"""The calling conventions of methods of static shape, for NPUs and Core ML: what a host feeds, and what it writes back.

An artifact has two methods over the same state, `decode` for one token and `prefill` for a chunk of N. Batch 1. The
state is the same everywhere: conv states `[1, L-1, hidden]`, keys and values `[1, kv_heads, window, head_dim]`,
float32. A call returns logits of the last valid token, whole new conv states, and of keys and values only its own
`[1, kv_heads, N, head_dim]`, whose first `length` columns the host writes at `position`.

A `.pte` takes, in this order:

- `tokens [1, N] int32`, right-padded with any id;
- `position [1] int32`, tokens already seen; `length [1] int32`, valid tokens of this call;
- `mask [1, 1, N, window + N] float32`, added to attention's scores: 0 where a row may look, `MASKED` elsewhere.
  The first `window` columns are the cache, the rest this call's tokens;
- the state.

An ONNX graph takes the state and the tensors of `graph_inputs`, by name, and calls its outputs `logits` and `new_…`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from lfm2_export.checkpoint.config import LFM2Config
from lfm2_export.model.operators import rotary_tables
from lfm2_export.model.state import State, is_cache, state_shapes

DECODE, PREFILL = "decode", "prefill"
MASKED = -100.0  # exp() of it is far below a 16-bit step, and a 16-bit scale still has room for the scores


def static_state(config: LFM2Config, window: int) -> State:
    """Return a new conversation's state as these methods have it: conv states transposed, columns before channels."""
    return {
        name: torch.zeros(shape if is_cache(name) else (shape[0], shape[2], shape[1]))
        for name, shape in state_shapes(config, window).items()
    }


def call_inputs(tokens: Sequence[int], rows: int, position: int, window: int, state: State) -> tuple[Tensor, ...]:
    """Return a `.pte`'s inputs for at most `rows` tokens at `position`. The state tensors are passed on, not copied."""
    ids = torch.zeros(1, rows, dtype=torch.int32)
    ids[0, : len(tokens)] = torch.tensor(tokens, dtype=torch.int32)
    mask = torch.full((1, 1, rows, window + rows), MASKED)
    mask[..., :position] = 0
    mask[0, 0, :, window:].triu_(1)  # a row sees this call's tokens up to its own
    counts = (torch.tensor([count], dtype=torch.int32) for count in (position, len(tokens)))
    return (ids, *counts, mask, *state.values())


def graph_inputs(config: LFM2Config, tokens: Sequence[int], position: int, rows: int, window: int) -> dict[str, Tensor]:
    """Return an ONNX graph's inputs, all but the state, for at most `rows` tokens at `position`.

    Right padding repeats the last token: whatever it computes is hidden from the valid rows and never written, and a
    real token's activations lie in calibrated ranges.
    """
    count = len(tokens)
    padded = [*tokens, *[tokens[-1]] * (rows - count)]
    positions = torch.arange(position, position + rows).view(1, 1, -1)
    cos, sin = rotary_tables(positions, config.head_dim, *config.rotary("full_attention"))
    hidden = torch.ones(1, 1, rows, window + rows)
    hidden[..., :position] = 0
    hidden[0, 0, :, window:].triu_(1)
    inputs = {"tokens": torch.tensor([padded], dtype=torch.int32), "cos": cos, "sin": sin, "hidden": hidden}
    if rows > 1:
        inputs["last_row"] = torch.tensor([count - 1], dtype=torch.int32)
        inputs["conv_rows"] = torch.arange(count, count + config.conv_L_cache - 1, dtype=torch.int32)
    return inputs


def write_back(state: State, new: Iterable[Tensor], position: int, length: int) -> None:
    """Write a call's new state into `state`, in place: `length` columns of keys and values at `position`."""
    for (name, tensor), piece in zip(state.items(), new, strict=True):
        if is_cache(name):
            tensor[:, :, position : position + length] = piece[:, :, :length]
        else:
            tensor.copy_(piece)
