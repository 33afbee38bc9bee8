"""What a method takes and gives: static shapes, the state in the contract's names, masks made by the caller.

The NPU wants every shape fixed, so a method has a fixed number of rows (1 to decode, N to prefill) over the whole
window of C columns; unused rows and columns are hidden by a mask. Inputs of a method with N rows, batch 1:

- `tokens [1, N] int32`; `cos`, `sin [1, 1, N, head_dim]`, RoPE's factors of each row's position;
- `hidden [1, 1, N, C+N]`: 1 where a row must not see a column (C of the cache, then this call's N), else 0;
- with N > 1: `last_row [1] int32`, the last valid row, and `conv_rows [L-1] int32`, which rows of (old conv state,
  this call's) are the new conv state;
- for sliding attention over W tokens `sliding_cos`, `sliding_sin`, `sliding_hidden [1, 1, N, W-1+N]` and
  `sliding_rows [W-1] int32` likewise;
- `conv_state.i [1, L-1, hidden]`, `key.i`, `value.i [1, kv_heads, C, head_dim]`, `sliding_key.i`, `sliding_value.i
  [1, W-1, kv_heads·head_dim]`, only read.

Outputs: `logits [1, vocab]` of the last valid row; `new_conv_state.i`, `new_sliding_key.i`, `new_sliding_value.i`,
shaped as they came in; and this call's `new_key.i`, `new_value.i [1, kv_heads, N, head_dim]`, which the caller writes
at its position.
"""

from __future__ import annotations

from functools import cached_property

import numpy as np

from lfm2_export.checkpoint.config import LFM2Config
from lfm2_export.graph.steps import LENGTH, POSITION, STATE, TOKENS, Network
from lfm2_export.model.state import is_cache, state_shapes
from lfm2_export.static_calls import angle_kinds
from lfm2_export.targets.onnx_graph import Graph

MASK, SLIDING_MASK = "mask", "sliding_mask"  # what is added to attention's scores
Angles = tuple[str, str]  # cos and sin


class Border:
    """The inputs and outputs of a graph of `rows` tokens, and what the graph calls them."""

    def __init__(self, graph: Graph, network: Network, config: LFM2Config, rows: int, window: int, hide: float) -> None:
        """Declare them; `hide` is subtracted from the score of a hidden column."""
        self.rows, self.columns = rows, window + rows
        self._graph, self._hide = graph, hide
        tokens = graph.input("tokens", "int32", 1, rows)
        self.angles: dict[tuple[object, ...], Angles] = {}  # by what tells one `rotary` step from another
        for kind, prefix in angle_kinds(config).items():
            cos, sin = (
                graph.input(f"{prefix}{name}", "float32", 1, 1, rows, config.head_dim) for name in ("cos", "sin")
            )
            self.angles[(config.head_dim, *config.rotary(kind))] = cos, sin
        self._hidden = graph.input("hidden", "float32", 1, 1, rows, self.columns)
        self.last_row = self.conv_rows = self.sliding_rows = ""  # a lone row needs none
        if rows > 1:
            self.last_row = graph.input("last_row", "int32", 1)
            self.conv_rows = graph.input("conv_rows", "int32", config.conv_L_cache - 1)
        if config.sliding_layers and config.sliding_window is not None:
            reach = config.sliding_window - 1
            self._sliding_hidden = graph.input("sliding_hidden", "float32", 1, 1, rows, reach + rows)
            if rows > 1:
                self.sliding_rows = graph.input("sliding_rows", "int32", reach)
        graph.output("logits", "float32", 1, config.vocab_size)
        # of the network; the caller gives position and length as what they are for: `cos`, `hidden`, `last_row`, …
        self.values = {TOKENS: tokens, POSITION: "", LENGTH: "", "": ""}
        self.results: dict[str, str] = {}  # what the graph must call a new state, by the network's name for it
        for (name, new), shape in zip(network.state.items(), state_shapes(config, window).values(), strict=True):
            _, first, second, *width = shape
            before, after = ((first, second), (first, rows)) if is_cache(name) else ((second, first), (second, first))
            self.values[STATE + name] = graph.input(name, "float32", 1, *before, *width)
            graph.output(f"new_{name}", "float32", 1, *after, *width)
            self.results[new] = f"new_{name}"

    @cached_property
    def mask(self) -> str:
        """`[1, 1, N, C+N]`: 0 where a row may look."""
        return self._graph.op("Mul", MASK, self._hidden, self._factor)

    @cached_property
    def sliding_mask(self) -> str:
        """`[1, 1, N, W-1+N]`: the same for sliding attention."""
        return self._graph.op("Mul", SLIDING_MASK, self._sliding_hidden, self._factor)

    @cached_property
    def _factor(self) -> str:
        return self._graph.constant("mask.hide", np.array([-self._hide], dtype=np.float32))
