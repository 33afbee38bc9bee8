"""The traced model in the words XNNPACK understands: same weights, same function, other operators.

Lowered as it stands, `model/decoder.py` shatters into dozens of delegates: with a dynamic number of tokens XNNPACK
takes no slice, no mean over a 3-D tensor and no reshape with a symbolic size. So a mean is a product with a vector of
1/H, rotate-half a product with a constant matrix, the short convolution a convolution, the masks arithmetic instead of
comparisons, and each reshape leaves T to be inferred. What remains outside is the embedding lookup and, at the end,
picking rows by `length`: one delegate for the body and one for the head. Batch 1 only.
"""

from __future__ import annotations

from typing import NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lfm2_export.model.attention import MASKED, Attention
from lfm2_export.model.decoder import Decoder
from lfm2_export.model.layers import RMSNorm
from lfm2_export.model.short_conv import ShortConv
from lfm2_export.model.state import State
from lfm2_export.targets._xnnpack.embedding import embedding

_NEVER = 1e9  # the time of a column that no query may see


class _At(NamedTuple):
    """The call's place in the window, computed once for all layers; G = query heads per KV head."""

    cos: Tensor  # [1, T, 1, D]
    sin: Tensor  # [1, T, 1, D]
    mask: Tensor  # [T·G, S+T] additive


class DelegableDecoder(nn.Module):
    """A `Decoder` of batch 1 and a fixed window, with the signature and results of `Decoder.forward`.

    Weights are shared with the decoder, which stays as it was.
    """

    frequencies: Tensor  # [D]
    columns: Tensor  # [S]
    group: Tensor  # [1, G]

    def __init__(self, decoder: Decoder, window: int) -> None:
        super().__init__()
        self.config = config = decoder.config
        self.embed_tokens = embedding(decoder.embed_tokens)
        self.layers = nn.ModuleList(_Block(decoder, i) for i in range(config.num_hidden_layers))
        self.embedding_norm = _Norm(decoder.embedding_norm)
        self.lm_head = decoder.lm_head
        exponent = torch.arange(0, config.head_dim, 2, dtype=torch.float32) / config.head_dim
        self.register_buffer("frequencies", (1.0 / config.rope_theta**exponent).repeat(2))
        self.register_buffer("columns", torch.arange(window, dtype=torch.float32))
        self.register_buffer("group", torch.ones(1, config.num_attention_heads // config.num_key_value_heads))

    def forward(self, tokens: Tensor, position: Tensor, length: Tensor | None, state: State) -> tuple[Tensor, State]:
        """tokens `[1, T] int64`, position `[1] int64`, length `[1] int64` or None → logits `[1, vocab]`, new state."""
        at = self._at(tokens, position)
        x = self.embed_tokens(tokens)
        new: State = {}
        for i, kind in enumerate(self.config.layer_types):
            block = cast(_Block, self.layers[i])
            normed = block.operator_norm(x)
            if kind == "conv":
                mixed, new[f"conv_state.{i}"] = block.operator(normed, state[f"conv_state.{i}"], length)
            else:
                past = state[f"key.{i}"], state[f"value.{i}"]
                mixed, new[f"key.{i}"], new[f"value.{i}"] = block.operator(normed, *past, at)
            x = x + mixed
            x = x + block.feed_forward(block.ffn_norm(x))
        x = x[:, -1:] if length is None else x.index_select(1, length - 1)
        return self.lm_head(self.embedding_norm(x.view(1, -1))), new

    def _at(self, tokens: Tensor, position: Tensor) -> _At:
        """Each key column has a time, an unfilled one `_NEVER`; a query sees the columns no later than itself."""
        seen = position.to(torch.float32)
        rows = torch.arange(tokens.shape[1], dtype=torch.float32) + seen  # [T]
        angles = rows.view(1, -1, 1, 1) * self.frequencies
        past = self.columns + (self.columns - seen + 1).clamp(0, 1) * _NEVER
        queries = (rows.view(-1, 1) * self.group).view(-1, 1)  # [T·G, 1]
        mask = (torch.cat((past, rows)) - queries).clamp(0, 1) * MASKED
        return _At(angles.cos(), angles.sin(), mask)


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

    def forward(self, x: Tensor, conv_state: Tensor, length: Tensor | None) -> tuple[Tensor, Tensor]:
        tokens, hidden = x.shape[1], x.shape[2]
        gated = torch.permute_copy(self.b_proj(x) * self.x_proj(x), (0, 2, 1))
        columns = torch.cat((conv_state, gated), dim=2)  # [1, H, L-1+T]
        mixed = F.conv2d(columns.view(1, hidden, 1, -1), self.kernel, self.bias, groups=hidden)
        mixed = torch.permute_copy(mixed.view(1, hidden, -1), (0, 2, 1))
        if length is None:
            last = columns.narrow(2, tokens, self.width - 1)
        else:
            last = columns.index_select(2, length + torch.arange(self.width - 1))
        return self.out_proj(self.c_proj(x) * mixed), last


class _Attention(nn.Module):
    """Attention over the whole window and the call's own keys, as three-dimensional products."""

    rotation: Tensor

    def __init__(self, attention: Attention) -> None:
        super().__init__()
        self.q_proj, self.k_proj, self.v_proj = attention.q_proj, attention.k_proj, attention.v_proj
        self.out_proj, self.head_dim = attention.out_proj, attention.head_dim
        self.q_layernorm, self.k_layernorm = _Norm(attention.q_layernorm), _Norm(attention.k_layernorm)
        self.register_buffer("rotation", _rotate_half(attention.head_dim))

    def forward(self, x: Tensor, past_key: Tensor, past_value: Tensor, at: _At) -> tuple[Tensor, Tensor, Tensor]:
        kv_heads, width = past_key.shape[1], self.head_dim
        key = torch.permute_copy(self._rotated(self.k_layernorm(self._heads(self.k_proj(x))), at), (0, 2, 1, 3))
        value = torch.permute_copy(self._heads(self.v_proj(x)), (0, 2, 1, 3))
        query = self._rotated(self.q_layernorm(self._heads(self.q_proj(x))), at) * width**-0.5
        groups = query.shape[2] // kv_heads
        folded = torch.permute_copy(query.view(-1, kv_heads, groups, width), (1, 0, 2, 3)).view(kv_heads, -1, width)
        keys = torch.cat((past_key, key), dim=2).view(kv_heads, -1, width)
        values = torch.cat((past_value, value), dim=2).view(kv_heads, -1, width)
        weights = torch.softmax(torch.bmm(folded, torch.permute_copy(keys, (0, 2, 1))) + at.mask, dim=-1)
        mixed = torch.bmm(weights, values).view(kv_heads, -1, groups, width)
        mixed = torch.permute_copy(mixed, (1, 0, 2, 3)).view(1, -1, kv_heads * groups * width)
        return self.out_proj(mixed), key, value

    def _heads(self, x: Tensor) -> Tensor:
        return x.view(1, -1, x.shape[2] // self.head_dim, self.head_dim)

    def _rotated(self, x: Tensor, at: _At) -> Tensor:
        return x * at.cos + F.linear(x, self.rotation) * at.sin


def _rotate_half(width: int) -> Tensor:
    """`[D, D]`: its product maps (a, b), the halves of a head, to (-b, a)."""
    half = torch.eye(width // 2)
    zero = torch.zeros_like(half)
    return torch.cat((torch.cat((zero, -half), dim=1), torch.cat((half, zero), dim=1)))
