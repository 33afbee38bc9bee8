"""How each step is written inside a delegate call: same weights, same arithmetic in the same order as `model/`.

The differences in form: XNNPACK has no mean over an axis of unknown extent and no negated half, so a mean is a product
with a vector of 1/H and rotate-half a product with a constant matrix; and batch is 1, so that a head can have an axis
of its own. Activations are `[1, T, channels]` ("rows"), or `[1, T, heads, D]` between `heads` and `rows`.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from lfm2_export.model.operators import MASKED, rotary_frequencies
from lfm2_export.targets.xnnpack.delegate_graph import Graph, Value


class Place(NamedTuple):
    """A step beside its inputs: the module at its path, and its arguments."""

    module: Any
    arguments: tuple[Any, ...]


def linear(graph: Graph, at: Place, x: Value) -> Value:
    """A product with the module's matrix, on rows."""
    return graph.linear(x, at.module)


def add(graph: Graph, at: Place, a: Value, b: Value) -> Value:
    """A sum."""
    return graph.add(a, b)


def multiply(graph: Graph, at: Place, a: Value, b: Value) -> Value:
    """A product, element by element."""
    return graph.multiply(a, b)


def silu(graph: Graph, at: Place, x: Value) -> Value:
    """x · sigmoid(x)."""
    return graph.multiply(x, graph.sigmoid(x))


def norm(graph: Graph, at: Place, x: Value) -> Value:
    """RMSNorm over the last axis: of rows, or of heads that have an axis of their own."""
    (eps,), weight = at.arguments, at.module.weight
    width = weight.shape[0]
    mean = graph.product(graph.multiply(x, x), torch.full((1, width), 1.0 / width))
    scale = graph.rsqrt(graph.add(mean, graph.constant(torch.tensor([eps]))))
    return graph.multiply(graph.multiply(x, scale), graph.constant(weight))


def angles(graph: Graph, at: Place, offsets: Value, seen: Value) -> tuple[Value, Value]:
    """cos and sin `[1, T, 1, width]` of positions: `offsets [T]` counts the call's tokens, `seen [1]` those before."""
    frequencies = graph.constant(rotary_frequencies(*at.arguments).repeat(2))
    times = graph.reshape(graph.add(offsets, seen), 1, 0, 1, 1)
    turns = graph.multiply(times, frequencies)
    return graph.cos(turns), graph.sin(turns)


def rotate(graph: Graph, at: Place, x: Value, cos: Value, sin: Value) -> Value:
    """RoPE of heads that have an axis of their own."""
    turned = graph.product(x, _rotate_half(x.shape[-1]))
    return graph.add(graph.multiply(x, cos), graph.multiply(turned, sin))


def convolve(graph: Graph, at: Place, gated: Value, state: Value) -> tuple[Value, Value]:
    """The causal convolution of rows behind `state [1, L-1, H]`, and all the columns `[1, L-1+T, H]` it went over."""
    columns = graph.concatenate(state, gated, axis=1)
    channels = columns.shape[-1]
    image = graph.reshape(columns, 1, 1, 0, channels)
    mixed = graph.depthwise(image, at.module.kernel, at.module.bias)
    return graph.reshape(mixed, 1, 0, channels), columns


def sliding_attend(
    graph: Graph,
    at: Place,
    query: Value,
    key: Value,
    value: Value,
    past_key: Value,
    past_value: Value,
    offsets: Value,
    seen: Value,
) -> tuple[Value, Value, Value]:
    """Sliding attention of rows, behind past keys and values `[1, W-1, kv_heads·D]`; all columns `[1, W-1+T, …]` too.

    Query heads of one KV head are folded into the time axis.
    """
    kv_heads, width = at.arguments
    groups = _channels(query) // kv_heads // width
    keys, values = graph.concatenate(past_key, key, axis=1), graph.concatenate(past_value, value, axis=1)
    hidden = _outside_window(graph, offsets, seen, past_key.shape[1], groups)
    mask = graph.multiply(hidden, graph.constant(torch.tensor([MASKED])))
    return attended(graph, width, query, keys, values, mask), keys, values


def attended(graph: Graph, width: int, query: Value, keys: Value, values: Value, mask: Value | None = None) -> Value:
    """Softmax attention of rows `[1, T, heads·D]` over keys and values `[1, columns, kv_heads·D]`, as rows.

    D is `width`. The mask, `[T·groups, columns]`, is added to the scores; without one every row sees all columns.
    """
    kv_heads = _channels(keys) // width
    groups = _channels(query) // kv_heads // width
    scaled = graph.multiply(query, graph.constant(torch.tensor([width**-0.5])))
    by_head = graph.transpose(graph.reshape(scaled, 0, kv_heads, groups, width), 1, 0, 2, 3)
    turned = graph.transpose(graph.reshape(keys, 0, kv_heads, width), 1, 2, 0)
    scores = graph.matmul(graph.reshape(by_head, kv_heads, 0, width), turned)  # [kv_heads, T·groups, columns]
    weights = graph.softmax(scores if mask is None else graph.add(scores, mask))
    mixed = graph.matmul(weights, graph.transpose(graph.reshape(values, 0, kv_heads, width), 1, 0, 2))
    by_row = graph.transpose(graph.reshape(mixed, kv_heads, 0, groups, width), 1, 0, 2, 3)
    return graph.reshape(by_row, 1, 0, kv_heads * groups * width)


def _outside_window(graph: Graph, offsets: Value, seen: Value, reach: int, groups: int) -> Value:
    """`[T·groups, W-1+T]`: 0 where a row's query sees the column, else how far outside it lies, at least 1."""
    zero, last = graph.constant(torch.zeros(1)), graph.constant(torch.tensor([float(reach)]))
    rows = graph.add(graph.reshape(offsets, 0, 1), graph.constant(torch.zeros(1, groups)))
    past = graph.constant(torch.arange(reach, dtype=torch.float32))
    columns = graph.concatenate(past, graph.add(offsets, last), axis=0)
    ahead = graph.subtract(columns, graph.reshape(rows, 0, 1))
    late = graph.maximum(graph.subtract(ahead, last), zero)
    early = graph.maximum(graph.subtract(zero, ahead), zero)
    empty = graph.maximum(graph.subtract(graph.subtract(last, seen), columns), zero)
    return graph.add(graph.add(late, early), empty)


def gate_heads(graph: Graph, at: Place, x: Value, gate: Value) -> Value:
    """Every head of rows times the sigmoid of its gate."""
    count = _channels(gate)
    apart = graph.reshape(x, 1, 0, count, _channels(x) // count)
    return rows(graph, at, graph.multiply(apart, graph.reshape(graph.sigmoid(gate), 1, 0, count, 1)))


def heads(graph: Graph, at: Place, x: Value) -> Value:
    """Heads of the given width in an axis of their own, whatever they were."""
    (width,) = at.arguments
    return graph.reshape(x, 1, 0, _channels(x) // width, width)


def rows(graph: Graph, at: Place, x: Value) -> Value:
    """Heads side by side again."""
    return graph.reshape(x, 1, 0, _channels(x))


def by_head(graph: Graph, at: Place, x: Value) -> Value:
    """Heads as attention takes them, those of a KV head together: `[1, T, heads, D]` → `[kv_heads, T, groups, D]`."""
    kv_heads, _ = at.arguments
    _, _, count, width = x.shape
    return graph.transpose(graph.reshape(x, 0, kv_heads, count // kv_heads, width), 1, 0, 2, 3)


def by_row(graph: Graph, at: Place, x: Value) -> Value:
    """Return what attention gives, `[kv_heads, T, groups, D]`, as rows."""
    kv_heads, _, groups, width = x.shape
    return graph.reshape(graph.transpose(x, 1, 0, 2, 3), 1, 0, kv_heads * groups * width)


def swap_pairs(graph: Graph, at: Place, x: Value) -> Value:
    """Exchange the two of each pair of channels (see `embedding.NibbleEmbedding`): exact, a sum of one term and 0."""
    channels = _channels(x)
    pairs = graph.reshape(x, 1, 0, channels // 2, 2)
    swapped = graph.product(pairs, torch.tensor([[0.0, 1.0], [1.0, 0.0]]))
    return graph.reshape(swapped, 1, 0, channels)


def without_time(graph: Graph, at: Place, x: Value) -> Value:
    """The one row `[1, 1, H]` as `[1, H]`."""
    return graph.reshape(x, 1, _channels(x))


def _channels(x: Value) -> int:
    return x.shape[2] if len(x.shape) == 3 else x.shape[2] * x.shape[3]


def _rotate_half(width: int) -> Tensor:
    """`[D, D]`: its product maps (a, b), the halves of a head, to (-b, a)."""
    half = torch.eye(width // 2)
    zero = torch.zeros_like(half)
    return torch.cat((torch.cat((zero, -half), dim=1), torch.cat((half, zero), dim=1)))
