"""LFM2's grouped-query attention (QK-norm, RoPE) over an explicit KV cache."""

from __future__ import annotations

from torch import Tensor, nn

from lfm2_export.checkpoint.config import LFM2Config
from lfm2_export.model import operators
from lfm2_export.model.layers import HeadNorm
from lfm2_export.model.layout import Shape
from lfm2_export.model.mixer import Call, Mixer


class Attention(Mixer):
    """Projections, per-head RMS norm of q and k, RoPE, attention, output projection."""

    attribute = "self_attn"

    def __init__(self, config: LFM2Config) -> None:
        super().__init__()
        self.head_dim = config.head_dim
        q_width = config.num_attention_heads * config.head_dim
        kv_width = config.num_key_value_heads * config.head_dim
        self.q_proj = nn.Linear(config.hidden_size, q_width, bias=False)
        self.k_proj = nn.Linear(config.hidden_size, kv_width, bias=False)
        self.v_proj = nn.Linear(config.hidden_size, kv_width, bias=False)
        self.out_proj = nn.Linear(q_width, config.hidden_size, bias=False)
        self.q_layernorm = HeadNorm(config.head_dim, config.norm_eps)
        self.k_layernorm = HeadNorm(config.head_dim, config.norm_eps)

    @staticmethod
    def state_shapes(config: LFM2Config, window: int) -> dict[str, Shape]:
        """Return key and value, `[kv_heads, S, head_dim]`, RoPE applied, S = window."""
        shape = (config.num_key_value_heads, window, config.head_dim)
        return {"key": shape, "value": shape}

    def forward(self, x: Tensor, state: tuple[Tensor, ...], call: Call) -> tuple[Tensor, tuple[Tensor, ...]]:
        """`x [B, T, H]`, past key and value → output `[B, T, H]`, this call's key and value `[B, kv_heads, T, D]`."""
        query, key, value = self.q_proj(x), self.k_proj(x), self.v_proj(x)
        query = operators.rotate(self.q_layernorm(query), call.cos, call.sin)
        key = operators.rotate(self.k_layernorm(key), call.cos, call.sin)
        past_key, past_value = state
        mixed, key, value = operators.attention(
            query, key, value, past_key, past_value, call.position, self.cache_dtype
        )
        return self.out_proj(mixed), (key, value)
