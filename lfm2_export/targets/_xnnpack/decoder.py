"""The traced model in the words XNNPACK understands: same weights, same function, other operators.

Lowered as it stands, `model/decoder.py` shatters into dozens of delegates: with a dynamic number of tokens XNNPACK
takes no slice, no mean over a 3-D tensor and no reshape with a symbolic size. So a mean is a product with a vector of
1/H, rotate-half a product with a constant matrix, the short convolution a convolution, and each reshape leaves T to be
inferred. What remains outside is the embedding lookup and attention: ExecuTorch's fused `llama::custom_sdpa`, which
reads the filled part of the cache only, and `llama::update_cache`, which writes into it. So the network is one delegate
per attention layer and one after the last. Batch 1 only.
"""

from __future__ import annotations

from typing import NamedTuple, cast

import torch
import torch.nn.functional as F
from executorch.extension.llm.custom_ops import custom_ops  # noqa: F401  defines llama::custom_sdpa and update_cache
from torch import Tensor, nn

from lfm2_export.model.attention import Attention
from lfm2_export.model.decoder import Decoder
from lfm2_export.model.layers import RMSNorm
from lfm2_export.model.short_conv import ShortConv
from lfm2_export.model.state import State
from lfm2_export.targets._xnnpack.embedding import embedding


class _At(NamedTuple):
    """The call's place in the window, computed once for all layers."""

    start: int  # tokens already seen (symbolic in the trace)
    cos: Tensor  # [1, T, 1, D]
    sin: Tensor  # [1, T, 1, D]


class DelegableDecoder(nn.Module):
    """A `Decoder` of batch 1 over caches that it writes itself; weights are shared with the decoder."""

    frequencies: Tensor  # [D]

    def __init__(self, decoder: Decoder) -> None:
        super().__init__()
        self.config = config = decoder.config
        self.embed_tokens = embedding(decoder.embed_tokens)
        self.layers = nn.ModuleList(_Block(decoder, i) for i in range(config.num_hidden_layers))
        self.embedding_norm = _Norm(decoder.embedding_norm)
        self.lm_head = decoder.lm_head
        exponent = torch.arange(0, config.head_dim, 2, dtype=torch.float32) / config.head_dim
        self.register_buffer("frequencies", (1.0 / config.rope_theta**exponent).repeat(2))

    def forward(self, tokens: Tensor, position: Tensor, length: None, state: State) -> tuple[Tensor, State]:
        """tokens `[1, T] int64`, position `[1] int64`, no padding → logits `[1, vocab]`, new conv states.

        The caches in `state`, `[kv_heads, S, 1, head_dim]`, are written in place; conv states are only read.
        """
        at = self._at(tokens, position)
        x = self.embed_tokens(tokens)
        new: State = {}
        for i, kind in enumerate(self.config.layer_types):
            block = cast(_Block, self.layers[i])
            normed = block.operator_norm(x)
            if kind == "conv":
                mixed, new[f"conv_state.{i}"] = block.operator(normed, state[f"conv_state.{i}"])
            else:
                mixed = block.operator(normed, state[f"key.{i}"], state[f"value.{i}"], at)
            x = x + mixed
            x = x + block.feed_forward(block.ffn_norm(x))
        return self.lm_head(self.embedding_norm(x[:, -1:].view(1, -1))), new

    def _at(self, tokens: Tensor, position: Tensor) -> _At:
        rows = torch.arange(tokens.shape[1], dtype=torch.float32) + position.to(torch.float32)
        angles = rows.view(1, -1, 1, 1) * self.frequencies
        start = position.item()
        torch._check(start >= 0)
        return _At(cast(int, start), angles.cos(), angles.sin())


class _Block(nn.Module):
    def __init__(self, decoder: Decoder, layer: int) -> None:
        super().__init__()
        block, kind = decoder.block(layer), decoder.config.layer_types[layer]
        self.operator_norm, self.ffn_norm = _Norm(block.operator_norm), _Norm(block.ffn_norm)
        self.operator: nn.Module = _Conv(block.conv) if kind == "conv" else _Attention(block.self_attn)
        self.feed_forward = block.feed_forward


class _Norm(nn.Module):
    """RMSNorm whose mean is a product with a vector of 1/H."""

    averaging: Tensor

    def __init__(self, norm: RMSNorm) -> None:
        super().__init__()
        width = norm.weight.shape[0]
        self.weight, self.eps = norm.weight, norm.eps
        self.register_buffer("averaging", torch.full((1, width), 1.0 / width))

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.rsqrt(F.linear(x * x, self.averaging) + self.eps) * self.weight


class _Conv(nn.Module):
    """The gated short convolution as a depthwise one: shifted views of a dynamic T would each end a delegate."""

    def __init__(self, conv: ShortConv) -> None:
        super().__init__()
        self.b_proj, self.c_proj, self.x_proj, self.out_proj = conv.b_proj, conv.c_proj, conv.x_proj, conv.out_proj
        kernel = conv.kernel.detach().t().reshape(-1, 1, 1, conv.width)
        self.kernel, self.bias, self.width = nn.Parameter(kernel.contiguous()), conv.bias, conv.width

    def forward(self, x: Tensor, conv_state: Tensor) -> tuple[Tensor, Tensor]:
        """`x [1, T, H]`, `conv_state [1, H, L-1]` → output `[1, T, H]`, new conv state."""
        tokens, hidden = x.shape[1], x.shape[2]
        gated = torch.permute_copy(self.b_proj(x) * self.x_proj(x), (0, 2, 1))
        columns = torch.cat((conv_state, gated), dim=2)  # [1, H, L-1+T]
        mixed = F.conv2d(columns.view(1, hidden, 1, -1), self.kernel, self.bias, groups=hidden)
        mixed = torch.permute_copy(mixed.view(1, hidden, -1), (0, 2, 1))
        return self.out_proj(self.c_proj(x) * mixed), columns.narrow(2, tokens, self.width - 1)


class _Attention(nn.Module):
    """Attention by the fused operator, over the filled part of the cache.

    A KV head is a batch entry to the operator: its keys then lie one after the other, which reads a long cache three
    times faster than the operator's usual layout of time before heads (measured at 8192 tokens, fp32).
    """

    rotation: Tensor

    def __init__(self, attention: Attention) -> None:
        super().__init__()
        self.q_proj, self.k_proj, self.v_proj = attention.q_proj, attention.k_proj, attention.v_proj
        self.out_proj, self.head_dim = attention.out_proj, attention.head_dim
        self.q_layernorm, self.k_layernorm = _Norm(attention.q_layernorm), _Norm(attention.k_layernorm)
        self.register_buffer("rotation", _rotate_half(attention.head_dim))

    def forward(self, x: Tensor, key_cache: Tensor, value_cache: Tensor, at: _At) -> Tensor:
        """`x [1, T, H]`; caches `[kv_heads, S, 1, D]`, written at `at.start` → `[1, T, H]`."""
        kv_heads, width = key_cache.shape[0], self.head_dim
        key = self._rotated(self.k_layernorm(self._heads(self.k_proj(x))), at)
        query = self._rotated(self.q_layernorm(self._heads(self.q_proj(x))), at)
        value = self._heads(self.v_proj(x))
        groups = query.shape[2] // kv_heads
        operators, cached = torch.ops.llama, key_cache.dtype
        operators.update_cache(_by_head(key, 1).to(cached), key_cache, at.start)
        operators.update_cache(_by_head(value, 1).to(cached), value_cache, at.start)
        query = _by_head(query, groups).to(cached)
        mixed = operators.custom_sdpa(query, key_cache, value_cache, at.start, None, 0.0, True).to(torch.float32)
        return self.out_proj(torch.permute_copy(mixed, (1, 0, 2, 3)).view(1, -1, kv_heads * groups * width))

    def _heads(self, x: Tensor) -> Tensor:
        return x.view(1, -1, x.shape[2] // self.head_dim, self.head_dim)

    def _rotated(self, x: Tensor, at: _At) -> Tensor:
        return x * at.cos + F.linear(x, self.rotation) * at.sin


def _by_head(x: Tensor, groups: int) -> Tensor:
    """`[1, T, kv_heads·groups, D]` → `[kv_heads, T, groups, D]`."""
    split = x.view(-1, x.shape[2] // groups, groups, x.shape[3])
    return torch.permute_copy(split, (1, 0, 2, 3))


def _rotate_half(width: int) -> Tensor:
    """`[D, D]`: its product maps (a, b), the halves of a head, to (-b, a)."""
    half = torch.eye(width // 2)
    zero = torch.zeros_like(half)
    return torch.cat((torch.cat((zero, -half), dim=1), torch.cat((half, zero), dim=1)))
