"""What the graph takes and gives: the names and shapes that onnxruntime-genai and transformers.js look for.

One file can so serve both. `i` is the layer's index in the network:

- inputs `input_ids [B, T]` (of a vision-language model's decoder `inputs_embeds [B, T, hidden]`),
  `attention_mask [B, past+T]`, `position_ids [B, T]`, per short convolution `past_conv.i [B, hidden, L]`, per attention
  `past_key_values.i.key|value [B, kv_heads, past, head_dim]`;
  optionally `num_logits_to_keep` (1 unless given, 0 = all T rows), and, where the recipe has speculation,
  `num_states_to_keep` (1 unless given: K = the states behind each of the last K valid tokens, which overlap);
  per sliding attention `past_key_values.i.key|value [B, W-1, kv_heads·head_dim]`, behind those of the others:
  transformers.js reads the length of a conversation off the first;
- outputs `logits [B, kept, vocab]`, `present_conv.i [B, hidden, L-1+K]`, `present.i.key|value`, of sliding attention
  `[B, W-2+K, kv_heads·head_dim]`.

Row b's call starts at `position_ids[b, 0]` and holds as many valid tokens as its mask has ones from there on; the
rest is right padding, which touches no conv state and writes its keys beyond the valid ones, where the next call
overwrites them. With past and present bound to the same buffer, GroupQueryAttention writes in place. It refuses
several rows of several tokens each on top of a past: a batch prefills in one call and then decodes, a single row
may be cut at will. A conv state has L columns here although L-1 are enough: the first is ignored when it comes in.

A draft is verified by a call that keeps the logits and states of all its T tokens. As many columns as came in, from n-1
on, are the state as of the first n: of a convolution L, of sliding attention W-1.
"""

from __future__ import annotations

from functools import cached_property

import numpy as np
from onnx import TensorProto, helper

from lfm2_export.checkpoint.config import LFM2Config
from lfm2_export.graph.steps import LENGTH, POSITION, STATE, TOKENS, Network
from lfm2_export.model.operators import MASKED
from lfm2_export.model.state import is_cache, state_shapes
from lfm2_export.targets.onnx_graph import Graph

_BATCH, _TOKENS, _PAST, _TOTAL = "batch_size", "sequence_length", "past_sequence_length", "total_sequence_length"
_NAMES = {  # of a state tensor that comes in and of the one that goes out, by the contract's name
    "conv_state": ("past_conv.{}", "present_conv.{}"),
    "key": ("past_key_values.{}.key", "present.{}.key"),
    "value": ("past_key_values.{}.value", "present.{}.value"),
    "sliding_key": ("past_key_values.{}.key", "present.{}.key"),
    "sliding_value": ("past_key_values.{}.value", "present.{}.value"),
}


class Border:
    """The inputs and outputs of a graph, and where a call's tokens stand; what no step asks for is not computed."""

    def __init__(
        self,
        graph: Graph,
        network: Network,
        config: LFM2Config,
        window: int,
        cache: str,
        verifies: bool,
        embedded: bool = False,
    ) -> None:
        """`embedded`: embeddings come in, in the place of tokens."""
        self.window = window
        self._verifies = verifies
        self.cache = cache  # dtype of keys and values, and with them of attention
        self._graph, self._config = graph, config
        graph.output("logits", "float32", _BATCH, 1, config.vocab_size)  # 1: by default; genai reads it as "last only"
        if embedded:
            graph.input("inputs_embeds", "float32", _BATCH, _TOKENS, config.hidden_size)
        else:
            graph.input("input_ids", "int64", _BATCH, _TOKENS)
        self._mask = graph.input("attention_mask", "int64", _BATCH, _TOTAL)
        position_ids = graph.input("position_ids", "int64", _BATCH, _TOKENS)
        tokens = position_ids if embedded else "input_ids"  # where only their number matters
        self._position = graph.op("Gather", "call/position", position_ids, graph.int(0), axis=1)
        seen = graph.op("ReduceSum", "call/seen", self._mask, graph.ints(1), keepdims=0)
        self._length = graph.op("Sub", "call/length", seen, self._position)
        self.position_ids = position_ids
        self.values = {TOKENS: tokens, POSITION: self._position, LENGTH: self._length, "": ""}  # of the network
        self.results: dict[str, str] = {}  # what the graph must call a new state, by the network's name for it
        for name, new in sorted(network.state.items(), key=lambda each: each[0].startswith("sliding_")):
            self._declare(name, new, state_shapes(config, window)[name])

    def _declare(self, name: str, new: str, shape: tuple[int, ...]) -> None:
        kind, _, layer = name.partition(".")
        past, present = (spelled.format(layer) for spelled in _NAMES[kind])
        if is_cache(name):
            _, kv_heads, _, width = shape
            self._graph.input(past, self.cache, _BATCH, kv_heads, _PAST, width)
            self._graph.output(present, self.cache, _BATCH, kv_heads, "present_sequence_length", width)
        elif kind.startswith("sliding_"):
            _, width, columns = shape
            self._graph.input(past, self._graph.real, _BATCH, columns, width)
            kept = "sliding_columns" if self._verifies else columns
            self._graph.output(present, self._graph.real, _BATCH, kept, width)
        else:
            _, hidden, columns = shape
            self._graph.input(past, self._graph.real, _BATCH, hidden, columns + 1)
            kept = "conv_columns" if self._verifies else columns + 1
            self._graph.output(present, self._graph.real, _BATCH, hidden, kept)
        self.values[STATE + name] = past
        self.results[new] = present

    @cached_property
    def tokens(self) -> str:
        """`[] int64`: T."""
        return self._extent("tokens", self.values[TOKENS])

    @cached_property
    def total(self) -> str:
        """`[] int32`: the most columns any row has after this call."""
        return self._graph.op("Cast", "call/total_int32", self._extent("total", self._mask), to=TensorProto.INT32)

    @cached_property
    def last_index(self) -> str:
        """`[B] int32`: absolute position of each row's last column, padding included."""
        end = self._graph.op("Add", "call/end", self._position, self.tokens)
        last = self._graph.op("Sub", "call/last", end, self._graph.int(1))
        return self._graph.op("Cast", "call/last_index", last, to=TensorProto.INT32)

    @cached_property
    def conv_columns(self) -> str:
        """`[B, L, 1] int64`: which rows of (last L-1, this call's T) are the new conv state.

        They end with each row's last valid token. For a row without one the first index is -1, any column: what it
        reads is the ignored one.
        """
        return self._columns("conv", -1, self._config.conv_L_cache - 1)

    def _columns(self, kind: str, first: int, end: int) -> str:
        """`[B, columns, 1] int64`: those from `first` to before `end`, counted from a row's number of valid tokens.

        They are one state; each further one that is wanted begins a column earlier.
        """
        graph = self._graph
        ends = graph.op("Unsqueeze", f"call/{kind}_ends", self._length, graph.ints(1, 2))
        if self._verifies:
            start = graph.op("Sub", f"call/{kind}_first", graph.int(first + 1), self._states)
            offsets = graph.op("Range", f"call/{kind}_range", start, graph.int(end), graph.int(1))
        else:
            offsets = graph.constant(f"call/{kind}_range", np.arange(first, end, dtype=np.int64))
        listed = graph.op("Unsqueeze", f"call/{kind}_offsets", offsets, graph.ints(1))
        return graph.op("Add", f"call/{kind}_columns", ends, listed)

    @cached_property
    def _states(self) -> str:
        """`[] int64`: how many of the last states are wanted."""
        return self._graph.optional_input("num_states_to_keep", np.array(1, dtype=np.int64))

    @cached_property
    def sliding_columns(self) -> str:
        """`[B, W-1, 1] int64`: which columns of (past W-1, this call's T) are the new state of a sliding attention."""
        return self._columns("sliding", 0, self._reach)

    @cached_property
    def sliding_mask(self) -> str:
        """`[B, 1, 1, T, W-1+T]`: 0 where a token sees a column of (past W-1, this call's T), else a large negative."""
        graph = self._graph
        reach, first, unit = graph.int(self._reach), graph.int(0), graph.int(1)
        count = graph.op("Add", "sliding/count", self.tokens, reach)
        columns = graph.op("Range", "sliding/columns", first, count, unit)
        rows = graph.op("Range", "sliding/rows", first, self.tokens, unit)
        ahead = graph.op("Sub", "sliding/ahead", columns, graph.op("Unsqueeze", "sliding/row", rows, graph.ints(1)))
        early = graph.op("GreaterOrEqual", "sliding/not_before", ahead, first)
        late = graph.op("LessOrEqual", "sliding/not_behind", ahead, reach)
        within = graph.op("And", "sliding/within", early, late)
        empty = graph.op("Sub", "sliding/empty", reach, self._position)
        start = graph.op("Unsqueeze", "sliding/start", empty, graph.ints(1, 2))
        filled = graph.op("GreaterOrEqual", "sliding/filled", columns, start)  # [B, 1, W-1+T]
        seen = graph.op("And", "sliding/seen", within, filled)
        zero, hidden = (
            graph.constant(f"sliding/{name}", np.array(value, dtype=graph.real))
            for name, value in (("zero", 0.0), ("hidden", MASKED if graph.real == "float32" else -65504.0))
        )
        mask = graph.op("Where", "sliding/penalty", seen, zero, hidden)
        return graph.op("Unsqueeze", "sliding/mask", mask, graph.ints(1, 2))

    @cached_property
    def no_expert(self) -> str:
        """`[B, T, experts]`: zeros, into which a layer's router writes the weights of the chosen experts."""
        graph = self._graph
        rows = graph.op("Shape", "experts/rows", self.values[TOKENS])
        shape = graph.op("Concat", "experts/shape", rows, graph.ints(self._config.num_experts), axis=0)
        zero = helper.make_tensor("zero", helper.np_dtype_to_tensor_dtype(np.dtype(graph.real)), [1], [0.0])
        return graph.op("ConstantOfShape", "experts/none", shape, value=zero)

    @property
    def _reach(self) -> int:
        assert self._config.sliding_window is not None
        return self._config.sliding_window - 1

    @cached_property
    def tap_ends(self) -> list[str]:
        """L-1 of `[1] int64`: where the rows under each tap of a convolution but the last end."""
        graph = self._graph
        count = graph.op("Unsqueeze", "call/tap_end_0", self.tokens, graph.ints(0))
        later = range(1, self._config.conv_L_cache - 1)
        return [count, *(graph.op("Add", f"call/tap_end_{tap}", count, graph.ints(tap)) for tap in later)]

    @cached_property
    def kept_rows(self) -> str:
        """`[B, kept, 1] int64`: the rows whose logits are wanted, the last `num_logits_to_keep` valid ones or all."""
        graph = self._graph
        keep = graph.optional_input("num_logits_to_keep", np.array(1, dtype=np.int64))
        everything = graph.op("Equal", "logits/everything", keep, graph.int(0))
        fewer = graph.op("Min", "logits/fewer", keep, self.tokens)
        count = graph.op("Where", "logits/count", everything, self.tokens, fewer)
        end = graph.op("Where", "logits/end", everything, self.tokens, self._length)
        first = graph.op("Unsqueeze", "logits/first", graph.op("Sub", "logits/start", end, count), graph.ints(1))
        offsets = graph.op("Range", "logits/offsets", graph.int(0), count, graph.int(1))
        rows = graph.op("Max", "logits/rows", graph.op("Add", "logits/steps", first, offsets), graph.int(0))
        return graph.op("Unsqueeze", "logits/index", rows, graph.ints(2))

    def _extent(self, name: str, value: str) -> str:
        shape = self._graph.op("Shape", f"call/shape_of_{name}", value)
        return self._graph.op("Gather", f"call/{name}", shape, self._graph.int(1))
