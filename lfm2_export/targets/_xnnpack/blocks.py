"""LFM2 in XNNPACK's operators: same weights, same arithmetic in the same order as `model/`.

The one difference in form: XNNPACK has no mean over an axis of unknown extent and no negated half, so a mean is a
product with a vector of 1/H and rotate-half a product with a constant matrix.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from lfm2_export.checkpoint.config import LFM2Config
from lfm2_export.model.attention import Attention
from lfm2_export.model.decoder import Block
from lfm2_export.model.layers import FeedForward, RMSNorm
from lfm2_export.model.short_conv import ShortConv
from lfm2_export.targets._xnnpack.graph import Graph, Value


class Rotary(NamedTuple):
    """cos and sin of the call's positions, `[1, T, 1, D]`."""

    cos: Value
    sin: Value


def rotary(graph: Graph, rows: Value, position: Value, config: LFM2Config) -> Rotary:
    """`rows [T]` counts the call's tokens from 0, `position [1]` those before it."""
    exponent = torch.arange(0, config.head_dim, 2, dtype=torch.float32) / config.head_dim
    frequencies = graph.constant((1.0 / config.rope_theta**exponent).repeat(2))
    limit = rows.shape[0]
    times = graph.reshape(graph.add(rows, position), 1, 0, 1, 1, to=(1, limit, 1, 1))
    angles = graph.multiply(times, frequencies)
    return Rotary(graph.cos(angles), graph.sin(angles))


def swap_pairs(graph: Graph, x: Value) -> Value:
    """Exchange the two of each pair of channels (see `embedding.NibbleEmbedding`): exact, a sum of one term and 0."""
    _, limit, width = x.shape
    pairs = graph.reshape(x, 1, 0, width // 2, 2, to=(1, limit, width // 2, 2))
    swapped = graph.product(pairs, torch.tensor([[0.0, 1.0], [1.0, 0.0]]))
    return graph.reshape(swapped, 1, 0, width, to=x.shape)


def norm(graph: Graph, x: Value, module: RMSNorm) -> Value:
    """RMSNorm over the last axis."""
    width = module.weight.shape[0]
    mean = graph.product(graph.multiply(x, x), torch.full((1, width), 1.0 / width))
    scale = graph.rsqrt(graph.add(mean, graph.constant(torch.tensor([module.eps]))))
    out = graph.multiply(graph.multiply(x, scale), graph.constant(module.weight))
    graph.seen[module] = x, out
    return out


def feed_forward(graph: Graph, x: Value, block: Block) -> Value:
    """The block's second half: `x + mlp(norm x)`."""
    mlp: FeedForward = block.feed_forward
    normed = norm(graph, x, block.ffn_norm)
    gate = graph.linear(normed, mlp.w1)
    gated = graph.multiply(graph.multiply(gate, graph.sigmoid(gate)), graph.linear(normed, mlp.w3))
    return graph.add(x, graph.linear(gated, mlp.w2))


def short_conv(graph: Graph, x: Value, state: Value, block: Block) -> tuple[Value, Value]:
    """The first half of a conv block: `x + conv(norm x)`. `state [1, L-1, H]`.

    Returns the sum and the columns `[1, L-1+T, H]`, whose last L-1 are the new state.
    """
    conv: ShortConv = block.conv
    normed = norm(graph, x, block.operator_norm)
    gated = graph.multiply(graph.linear(normed, conv.b_proj), graph.linear(normed, conv.x_proj))
    columns = graph.concatenate(state, gated, axis=1)
    _, length, hidden = columns.shape
    image = graph.reshape(columns, 1, 1, 0, hidden, to=(1, 1, length, hidden))
    mixed = graph.reshape(graph.depthwise(image, conv.kernel, conv.bias), 1, 0, hidden, to=x.shape)
    out = graph.linear(graph.multiply(graph.linear(normed, conv.c_proj), mixed), conv.out_proj)
    return graph.add(x, out), columns


def queries_keys_values(graph: Graph, x: Value, at: Rotary, block: Block) -> tuple[Value, Value, Value]:
    """What attention starts from: queries `[kv_heads, T, groups, D]`, keys and values `[kv_heads, T, 1, D]`."""
    attention: Attention = block.self_attn
    normed = norm(graph, x, block.operator_norm)
    queries = _heads(graph, graph.linear(normed, attention.q_proj), attention.head_dim)
    keys = _heads(graph, graph.linear(normed, attention.k_proj), attention.head_dim)
    values = _heads(graph, graph.linear(normed, attention.v_proj), attention.head_dim)
    queries = _rotate(graph, norm(graph, queries, attention.q_layernorm), at)
    keys = _rotate(graph, norm(graph, keys, attention.k_layernorm), at)
    kv_heads = keys.shape[2]
    return _by_head(graph, queries, kv_heads), _by_head(graph, keys, kv_heads), _by_head(graph, values, kv_heads)


def attention_out(graph: Graph, x: Value, mixed: Value, block: Block) -> Value:
    """The end of an attention block's first half: `x + out_proj(mixed)`, mixed `[kv_heads, T, groups, D]`."""
    kv_heads, limit, groups, width = mixed.shape
    rows = graph.transpose(mixed, 1, 0, 2, 3)
    flat = graph.reshape(rows, 1, 0, kv_heads * groups * width, to=(1, limit, kv_heads * groups * width))
    return graph.add(x, graph.linear(flat, block.self_attn.out_proj))


def _heads(graph: Graph, x: Value, width: int) -> Value:
    _, limit, total = x.shape
    return graph.reshape(x, 1, 0, total // width, width, to=(1, limit, total // width, width))


def _by_head(graph: Graph, x: Value, kv_heads: int) -> Value:
    _, limit, heads, width = x.shape
    groups = heads // kv_heads
    rows = graph.reshape(x, 0, kv_heads, groups, width, to=(limit, kv_heads, groups, width))
    return graph.transpose(rows, 1, 0, 2, 3)


def _rotate(graph: Graph, x: Value, at: Rotary) -> Value:
    turned = graph.product(x, _rotate_half(x.shape[-1]))
    return graph.add(graph.multiply(x, at.cos), graph.multiply(turned, at.sin))


def _rotate_half(width: int) -> Tensor:
    """`[D, D]`: its product maps (a, b), the halves of a head, to (-b, a)."""
    half = torch.eye(width // 2)
    zero = torch.zeros_like(half)
    return torch.cat((torch.cat((zero, -half), dim=1), torch.cat((half, zero), dim=1)))
