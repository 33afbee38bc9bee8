"""The decoder in the form that Qualcomm's HTP takes whole: static shapes, batch 1, nothing computed on the host.

What differs from the traced model, and why (each was seen to fail or to be wrong otherwise):
RMS norm is one operator over `[1, rows, width]`, since HTP normalizes a tensor with two row axes wrongly; keys and
values are concatenated with the cache; heads that share a key are folded into rows; the convolution is a sum of taps;
rotary tables are looked up by position; the conv state and the last valid row are picked by index. Paths of modules
are the decoder's, so that a recipe's rules find them.
"""

from __future__ import annotations

from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lfm2_export.model.attention import Attention
from lfm2_export.model.decoder import Block, Decoder
from lfm2_export.model.layers import FeedForward, RMSNorm
from lfm2_export.model.operators import rotary_tables
from lfm2_export.model.short_conv import ShortConv


class NpuDecoder(nn.Module):
    """A `Decoder` for calls of exactly `count` tokens; see `qualcomm/calls.py` for what goes in and out."""

    cos: Tensor
    sin: Tensor
    rows: Tensor
    columns: Tensor

    def __init__(self, decoder: Decoder, window: int, count: int) -> None:
        super().__init__()
        config = decoder.config
        self.groups = config.num_attention_heads // config.num_key_value_heads
        self.embed_tokens = nn.Embedding.from_pretrained(decoder.embed_tokens.weight.float())
        self.layers = nn.ModuleList(_Block(decoder.block(i), kind, count) for i, kind in enumerate(config.layer_types))
        self.embedding_norm = _Norm(decoder.embedding_norm)
        self.lm_head = _linear(decoder.lm_head)
        cos, sin = rotary_tables(torch.arange(window).view(1, 1, -1), config.head_dim, config.rope_theta)
        half = config.head_dim // 2  # both halves of a head turn by the same angles
        self.register_buffer("cos", cos[..., :half].contiguous())
        self.register_buffer("sin", sin[..., :half].contiguous())
        self.register_buffer("rows", torch.arange(count, dtype=torch.int32))
        self.register_buffer("columns", torch.arange(config.conv_L_cache - 1, dtype=torch.int32))

    def forward(self, tokens: Tensor, position: Tensor, length: Tensor, mask: Tensor, *state: Tensor) -> list[Tensor]:
        at = position + self.rows
        cos, sin = self.cos.index_select(2, at), self.sin.index_select(2, at)
        mask = torch.cat([mask] * self.groups, dim=2) if self.groups > 1 else mask
        last = length + self.columns
        x = self.embed_tokens(tokens)
        given, new = iter(state), []
        for layer in self.layers:
            block = cast(_Block, layer)
            normed = block.operator_norm(x)
            if block.kind == "conv":
                mixed, column = block.conv(normed, next(given), last)
                new.append(column)
            else:
                mixed, key, value = block.self_attn(normed, next(given), next(given), cos, sin, mask)
                new += [key, value]
            x = x + mixed
            x = x + block.feed_forward(block.ffn_norm(x))
        x = x.index_select(1, length - 1)
        return [self.lm_head(self.embedding_norm(x)), *new]


class _Block(nn.Module):
    conv: _Conv  # in a conv layer
    self_attn: _Attention  # in an attention layer

    def __init__(self, block: Block, kind: str, rows: int) -> None:
        super().__init__()
        self.kind = kind
        self.operator_norm, self.ffn_norm = _Norm(block.operator_norm), _Norm(block.ffn_norm)
        self.feed_forward = _FeedForward(block.feed_forward)
        if kind == "conv":
            self.conv = _Conv(block.conv, rows)
        else:
            self.self_attn = _Attention(block.self_attn, rows)


class _Norm(nn.Module):
    def __init__(self, norm: RMSNorm) -> None:
        super().__init__()
        self.weight, self.eps = norm.weight, norm.eps

    def forward(self, x: Tensor) -> Tensor:
        """`x [1, rows, width]`, and no other rank."""
        return F.rms_norm(x, (x.shape[-1],), self.weight, self.eps)


class _FeedForward(nn.Module):
    def __init__(self, mlp: FeedForward) -> None:
        super().__init__()
        self.w1, self.w2, self.w3 = (_linear(part) for part in (mlp.w1, mlp.w2, mlp.w3))

    def forward(self, x: Tensor) -> Tensor:
        return self.w2(F.silu(self.w1(x)) * self.w3(x))


class _Conv(nn.Module):
    def __init__(self, conv: ShortConv, rows: int) -> None:
        super().__init__()
        self.rows, self.width = rows, conv.width
        self.b_proj, self.c_proj = _linear(conv.b_proj), _linear(conv.c_proj)
        self.x_proj, self.out_proj = _linear(conv.x_proj), _linear(conv.out_proj)
        self.taps = nn.ParameterList(tap.view(1, 1, -1).clone() for tap in conv.kernel)
        self.bias = conv.bias

    def forward(self, x: Tensor, state: Tensor, last: Tensor) -> tuple[Tensor, Tensor]:
        columns = torch.cat((state, self.b_proj(x) * self.x_proj(x)), dim=1)
        mixed = columns[:, : self.rows] * self.taps[0]
        for tap in range(1, self.width):
            mixed = mixed + columns[:, tap : tap + self.rows] * self.taps[tap]
        if self.bias is not None:
            mixed = mixed + self.bias
        return self.out_proj(self.c_proj(x) * mixed), columns.index_select(1, last)


class _Attention(nn.Module):
    def __init__(self, attention: Attention, rows: int) -> None:
        super().__init__()
        self.rows, self.width = rows, attention.head_dim
        self.heads = attention.q_proj.weight.shape[0] // self.width
        self.kv_heads = attention.k_proj.weight.shape[0] // self.width
        self.q_proj, self.k_proj = _linear(attention.q_proj), _linear(attention.k_proj)
        self.v_proj, self.out_proj = _linear(attention.v_proj), _linear(attention.out_proj)
        self.q_layernorm, self.k_layernorm = _Norm(attention.q_layernorm), _Norm(attention.k_layernorm)

    def forward(
        self, x: Tensor, past_key: Tensor, past_value: Tensor, cos: Tensor, sin: Tensor, mask: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        query = self._normed_heads(self.q_proj(x), self.q_layernorm, self.heads)
        key = self._normed_heads(self.k_proj(x), self.k_layernorm, self.kv_heads)
        query, key = _rotated(query, cos, sin), _rotated(key, cos, sin)
        value = self.v_proj(x).view(1, self.rows, self.kv_heads, self.width).transpose(1, 2)
        keys, values = torch.cat((past_key, key), dim=2), torch.cat((past_value, value), dim=2)
        folded = query.reshape(1, self.kv_heads, -1, self.width)
        scores = folded @ keys.transpose(2, 3) * self.width**-0.5 + mask
        mixed = (torch.softmax(scores, dim=-1) @ values).reshape(1, self.heads, self.rows, self.width)
        return self.out_proj(mixed.transpose(1, 2).reshape(1, self.rows, self.heads * self.width)), key, value

    def _normed_heads(self, x: Tensor, norm: _Norm, heads: int) -> Tensor:
        """`[1, rows, heads·D]` → `[1, heads, rows, D]`."""
        normed = norm(x.view(1, self.rows * heads, self.width))
        return normed.view(1, self.rows, heads, self.width).transpose(1, 2)


def _rotated(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    half = x.shape[-1] // 2
    first, second = x[..., :half], x[..., half:]
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)


def _linear(module: nn.Linear) -> nn.Linear:
    """A plain linear of the same weights; those of an fp16 one are float again, and fit HTP's fp16 exactly."""
    weight, bias = module.weight, module.bias
    linear = nn.Linear(weight.shape[1], weight.shape[0], bias=False, device="meta")
    linear.weight = nn.Parameter(weight.detach().float(), requires_grad=False)
    if bias is not None:  # the annotation says there always is one
        linear.bias = nn.Parameter(bias.detach(), requires_grad=False)
    return linear
