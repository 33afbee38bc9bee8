"""The calling conventions of methods of static shape, for NPUs and Core ML: what a host feeds, and what it writes back.

An artifact has two methods over the same state, `decode` for one token and `prefill` for a chunk of N. Batch 1. The
state is the same everywhere, float32: keys and values `[1, kv_heads, window, head_dim]`, conv states
`[1, L-1, hidden]`, and of sliding attention the last keys and values `[1, W-1, kv_heads·head_dim]`. A call returns
logits of the last valid token, those other states whole, and of keys and values only its own `[1, kv_heads, N,
head_dim]`, whose first `length` columns the host writes at `position`.

A `.pte` takes, in this order:

- `tokens [1, N] int32`, right-padded with any id;
- `position [1] int32`, tokens already seen; `length [1] int32`, valid tokens of this call;
- `mask [1, 1, N, window + N] float32`, added to attention's scores: 0 where a row may look, `MASKED` elsewhere.
  The first `window` columns are the cache, the rest this call's tokens;
- where the model has sliding attention, `sliding_mask [1, 1, N, W-1 + N] float32`, the same over what its state holds
  and this call's tokens;
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
    """Return a new conversation's state as these methods have it: all but caches with columns before channels."""
    return {
        name: torch.zeros(shape if is_cache(name) else (shape[0], shape[2], shape[1]))
        for name, shape in state_shapes(config, window).items()
    }


def call_inputs(tokens: Sequence[int], rows: int, position: int, window: int, state: State) -> tuple[Tensor, ...]:
    """Return a `.pte`'s inputs for at most `rows` tokens at `position`. The state tensors are passed on, not copied."""
    ids = torch.zeros(1, rows, dtype=torch.int32)
    ids[0, : len(tokens)] = torch.tensor(tokens, dtype=torch.int32)
    hidden = [_hidden(rows, position, window)]
    hidden += [_hidden_sliding(rows, position, reach) for reach in _reaches(state)]
    masks = (columns * MASKED for columns in hidden)
    counts = (torch.tensor([count], dtype=torch.int32) for count in (position, len(tokens)))
    return (ids, *counts, *masks, *state.values())


def graph_inputs(config: LFM2Config, tokens: Sequence[int], position: int, rows: int, window: int) -> dict[str, Tensor]:
    """Return an ONNX graph's inputs, all but the state, for at most `rows` tokens at `position`.

    Right padding repeats the last token: whatever it computes is hidden from the valid rows and never written, and a
    real token's activations lie in calibrated ranges.
    """
    count = len(tokens)
    padded = [*tokens, *[tokens[-1]] * (rows - count)]
    positions = torch.arange(position, position + rows).view(1, 1, -1)
    inputs = {"tokens": torch.tensor([padded], dtype=torch.int32)}
    for kind, prefix in angle_kinds(config).items():
        cos, sin = rotary_tables(positions, config.head_dim, *config.rotary(kind))
        inputs |= {f"{prefix}cos": cos, f"{prefix}sin": sin}
    inputs["hidden"] = _hidden(rows, position, window)
    kept = {"conv_rows": config.conv_L_cache - 1}
    if config.sliding_layers and config.sliding_window is not None:
        kept["sliding_rows"] = config.sliding_window - 1
        inputs["sliding_hidden"] = _hidden_sliding(rows, position, kept["sliding_rows"])
    if rows > 1:
        inputs["last_row"] = torch.tensor([count - 1], dtype=torch.int32)
        inputs |= {name: torch.arange(count, count + columns, dtype=torch.int32) for name, columns in kept.items()}
    return inputs


def angle_kinds(config: LFM2Config) -> dict[str, str]:
    """Return the kinds of attention that an ONNX graph gets RoPE's factors for, and what their names begin with."""
    return {"full_attention": ""} | ({"sliding_attention": "sliding_"} if config.sliding_layers else {})


def write_back(state: State, new: Iterable[Tensor], position: int, length: int) -> None:
    """Write a call's new state into `state`, in place: `length` columns of keys and values at `position`."""
    for (name, tensor), piece in zip(state.items(), new, strict=True):
        if is_cache(name):
            tensor[:, :, position : position + length] = piece[:, :, :length]
        else:
            tensor.copy_(piece)


def _hidden(rows: int, position: int, window: int) -> Tensor:
    """`[1, 1, rows, window + rows]`: 1 where a row must not see a column of (the cache, this call's tokens), else 0."""
    hidden = torch.ones(1, 1, rows, window + rows)
    hidden[..., :position] = 0
    hidden[0, 0, :, window:].triu_(1)  # a row sees this call's tokens up to its own
    return hidden


def _hidden_sliding(rows: int, position: int, reach: int) -> Tensor:
    """`[1, 1, rows, reach + rows]`: the same over the last `reach` tokens and this call's: a row sees `reach`."""
    ahead = torch.arange(reach + rows) - torch.arange(rows).unsqueeze(1)
    hidden = ((ahead < 0) | (ahead > reach)).float()
    hidden[:, : max(0, reach - position)] = 1  # not so many tokens were seen yet
    return hidden[None, None]


def _reaches(state: State) -> set[int]:
    """How far back sliding attention sees: W-1, or nothing where the model has none."""
    return {tensor.shape[1] for name, tensor in state.items() if name.startswith("sliding_")}
