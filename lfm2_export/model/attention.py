"""LFM2's grouped-query attention (QK-norm, RoPE) over an explicit KV cache."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from lfm2_export.checkpoint.config import LFM2Config
from lfm2_export.model.layers import RMSNorm, rotate

MASKED = -1e9  # finite: exp() of it is exactly 0 in fp32, and no backend turns it into a NaN


class Positions(NamedTuple):
    """What attention must know of the call's place in the window, computed once for all layers."""

    position: Tensor  # [B] int64, tokens already seen
    cos: Tensor  # [B, 1, T, head_dim]
    sin: Tensor  # [B, 1, T, head_dim]
    past_mask: Tensor  # [B, 1, 1, 1, S] additive: the filled part of the window
    causal_mask: Tensor  # [T, T] additive


def attend(
    query: Tensor, key: Tensor, value: Tensor, past_key: Tensor, past_value: Tensor, at: Positions, dtype: torch.dtype
) -> Tensor:
    """Softmax attention of the call's T tokens over the filled window and over themselves.

    query `[B, heads, T, D]`; key, value `[B, kv_heads, T, D]` (this call's); past_key, past_value
    `[B, kv_heads, S, D]` (read only) → `[B, heads, T, D]`. Query heads of one KV head are folded into the
    time axis, so the cache is never repeated.

    In a `dtype` narrower than fp32 it rounds where fused kernels do (ExecuTorch's `custom_sdpa`): what goes into each
    product and what comes out of the last; sums and the softmax's denominator stay fp32. Keys and values come rounded.
    """
    query = _rounded(query, dtype)
    batch, heads, _, width = query.shape
    kv_heads, window = past_key.shape[1], past_key.shape[2]
    groups = heads // kv_heads
    folded = query.reshape(batch, kv_heads, -1, width)
    past = (folded @ past_key.transpose(2, 3) * width**-0.5).view(batch, kv_heads, groups, -1, window) + at.past_mask
    new = folded @ key.transpose(2, 3) * width**-0.5
    new = new.view(batch, kv_heads, groups, -1, key.shape[2]) + at.causal_mask
    scores = torch.cat((past, new), dim=-1)
    weights = torch.exp(scores - scores.amax(-1, keepdim=True))
    total = weights.sum(-1, keepdim=True).flatten(2, 3)
    weights = _rounded(weights, dtype)
    past_weights = weights.narrow(-1, 0, window).flatten(2, 3)
    new_weights = weights.narrow(-1, window, key.shape[2]).flatten(2, 3)
    mixed = (past_weights @ past_value + new_weights @ value) / total
    return _rounded(mixed, dtype).view(batch, heads, -1, width)


def _rounded(x: Tensor, dtype: torch.dtype) -> Tensor:
    return x if dtype == torch.float32 else x.to(dtype).float()


class Attention(nn.Module):
    """Projections, per-head RMS norm of q and k, RoPE, attention, output projection."""

    def __init__(self, config: LFM2Config) -> None:
        super().__init__()
        self.head_dim = config.head_dim
        self.cache_dtype = torch.float32  # of the KV cache, and with it of attention's operands
        q_width = config.num_attention_heads * config.head_dim
        kv_width = config.num_key_value_heads * config.head_dim
        self.q_proj = nn.Linear(config.hidden_size, q_width, bias=False)
        self.k_proj = nn.Linear(config.hidden_size, kv_width, bias=False)
        self.v_proj = nn.Linear(config.hidden_size, kv_width, bias=False)
        self.out_proj = nn.Linear(q_width, config.hidden_size, bias=False)
        self.q_layernorm = RMSNorm(config.head_dim, config.norm_eps)
        self.k_layernorm = RMSNorm(config.head_dim, config.norm_eps)

    def forward(self, x: Tensor, past_key: Tensor, past_value: Tensor, at: Positions) -> tuple[Tensor, Tensor, Tensor]:
        """`x [B, T, H]` → output `[B, T, H]` and this call's key and value `[B, kv_heads, T, D]`."""
        key = rotate(self.k_layernorm(self._heads(self.k_proj(x))).transpose(1, 2), at.cos, at.sin)
        query = rotate(self.q_layernorm(self._heads(self.q_proj(x))).transpose(1, 2), at.cos, at.sin)
        value = self._heads(self.v_proj(x)).transpose(1, 2)
        key, value = _rounded(key, self.cache_dtype), _rounded(value, self.cache_dtype)
        mixed = attend(query, key, value, past_key, past_value, at, self.cache_dtype)
        return self.out_proj(mixed.transpose(1, 2).flatten(2)), key, value

    def _heads(self, x: Tensor) -> Tensor:
        """`[B, T, heads·D]` → `[B, T, heads, D]`; T stays -1, since a symbolic reshape is not delegated."""
        return x.view(x.shape[0], -1, x.shape[2] // self.head_dim, self.head_dim)
