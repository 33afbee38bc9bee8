"""Grouped-query attention (QK-norm, RoPE, an optional gate per head): over the whole context, or a sliding window."""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor, nn

from lfm2_export.checkpoint.config import LFM2Config
from lfm2_export.model import operators
from lfm2_export.model.layers import HeadNorm
from lfm2_export.model.layout import Shape, Stored, StoresOtherwise, stored, within
from lfm2_export.model.mixer import Call, Mixer

_LFM3_NAMES = {"out_proj": "o_proj", "q_layernorm": "q_norm", "k_layernorm": "k_norm", "g_proj": "gate_proj"}


class Attention(Mixer, StoresOtherwise):
    """Projections, per-head RMS norm of q and k, RoPE, attention over an explicit KV cache, output projection."""

    attribute = "self_attn"
    kind = "full_attention"

    def __init__(self, config: LFM2Config) -> None:
        super().__init__()
        self.head_dim = config.head_dim
        hidden, bias = config.hidden_size, config.attention_bias
        q_width = config.num_attention_heads * config.head_dim
        kv_width = config.num_key_value_heads * config.head_dim
        self.q_proj = nn.Linear(hidden, q_width, bias=bias)
        self.k_proj = nn.Linear(hidden, kv_width, bias=bias)
        self.v_proj = nn.Linear(hidden, kv_width, bias=bias)
        self.out_proj = nn.Linear(q_width, hidden, bias=bias)
        self.q_layernorm = HeadNorm(config.head_dim, config.norm_eps)
        self.k_layernorm = HeadNorm(config.head_dim, config.norm_eps)
        self.g_proj = nn.Linear(hidden, config.num_attention_heads, bias=False) if config.use_attention_gate else None
        self._on_disk = _LFM3_NAMES if config.model_type == "lfm3" else {}

    @staticmethod
    def state_shapes(config: LFM2Config, window: int) -> dict[str, Shape]:
        """Return key and value, `[kv_heads, S, head_dim]`, RoPE applied, S = window."""
        shape = (config.num_key_value_heads, window, config.head_dim)
        return {"key": shape, "value": shape}

    def stored(self, unsaved: bool) -> Iterator[Stored]:
        """Yield the checkpoint's tensors, some of which LFM3 calls otherwise."""
        for name, part in self.named_children():
            called = name if unsaved and name == "g_proj" else self._on_disk.get(name, name)
            for each in stored(part, unsaved):
                yield within(name, each)._replace(name=f"{called}.{each.name}")

    def forward(self, x: Tensor, state: tuple[Tensor, ...], call: Call) -> tuple[Tensor, tuple[Tensor, ...]]:
        """`x [B, T, H]` and the state of `state_shapes` → output `[B, T, H]` and what `_attend` makes of the state."""
        query, key, value = self.q_proj(x), self.k_proj(x), self.v_proj(x)
        cos, sin = call.angles[self.kind]
        query = operators.rotate(self.q_layernorm(query), cos, sin)
        key = operators.rotate(self.k_layernorm(key), cos, sin)
        mixed, *new = self._attend(query, key, value, state, call)
        if self.g_proj is not None:
            mixed = operators.gate_heads(mixed, self.g_proj(x))
        return self.out_proj(mixed), tuple(new)

    def _attend(
        self, query: Tensor, key: Tensor, value: Tensor, state: tuple[Tensor, ...], call: Call
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The mixed values, and this call's key and value `[B, kv_heads, T, D]`."""
        past_key, past_value = state
        mixed, key, value = operators.attention(
            query, key, value, past_key, past_value, call.position, self.cache_dtype
        )
        return mixed, key, value


class SlidingAttention(Attention):
    """The same over a sliding window; its state is what the last tokens left, as a convolution's is.

    It is of a fixed size and replaced whole, so nothing in it depends on the context's length or on the position. (A
    ring would save the shift of W-1 columns, 1 % of a decode step's memory traffic at LFM3-1.7B's shape in int4, and
    give every runtime, saved state and app a seam to get wrong.)
    """

    kind = "sliding_attention"

    @staticmethod
    def state_shapes(config: LFM2Config, window: int) -> dict[str, Shape]:
        """Return the last W-1 keys and values, `[kv_heads·head_dim, W-1]`, RoPE applied, whatever the window."""
        assert config.sliding_window is not None
        shape = (config.num_key_value_heads * config.head_dim, config.sliding_window - 1)
        return {"sliding_key": shape, "sliding_value": shape}

    def _attend(
        self, query: Tensor, key: Tensor, value: Tensor, state: tuple[Tensor, ...], call: Call
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The mixed values, and the new state."""
        past_key, past_value = state
        mixed, keys, values = operators.sliding_attention(
            query, key, value, past_key, past_value, call.position, call.length, self.head_dim
        )
        return mixed, keys, values
