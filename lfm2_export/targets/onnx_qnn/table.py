"""How the NPU's graphs write each kind of step: the network's own kinds, and those of `passes.py`.

Written for the NPU: RMSNormalization (opset 23; a norm spelled with Reciprocal comes out wrong there), the convolution
as L multiply-adds, query heads folded instead of keys repeated, no norm of four dimensions (see `_rotated_heads`). An
entry gets a step and what the graph calls its inputs, and returns what it calls the outputs.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, cast

import numpy as np

from lfm2_export.graph.steps import Step
from lfm2_export.model.decoder import Decoder
from lfm2_export.model.layers import RMSNorm
from lfm2_export.model.short_conv import ShortConv
from lfm2_export.targets.onnx_graph import Graph
from lfm2_export.targets.onnx_qnn.border import Border
from lfm2_export.targets.onnx_qnn.weights import matrix, product_matrix


class Site(NamedTuple):
    """The place where steps are written, and what the quantization of their values must know."""

    graph: Graph
    border: Border
    decoder: Decoder
    tables: tuple[str, ...]  # the embeddings' paths: a tied product reads what is stored there
    joined: dict[str, str]  # a state that comes in → the tensor that holds it and what is new
    scores: dict[str, str]  # attention's scores before the mask → after it

    def module(self, path: str) -> Any:
        """Return the decoder's module of that path."""
        return self.decoder.get_submodule(path)


def _embedding(to: Site, step: Step, tokens: str) -> str:
    table = matrix(to.graph, step.path, to.module(step.path).weight)
    return to.graph.op("Gather", f"{step.path}/Gather", table, tokens)


def _linear(to: Site, step: Step, x: str) -> str:
    path, bias = step.path, to.module(step.path).bias
    product = to.graph.op("MatMul", f"{path}/MatMul", x, product_matrix(to.graph, to.decoder, path, to.tables))
    return (
        product
        if bias is None
        else to.graph.op("Add", f"{path}/Add", product, to.graph.parameter(f"{path}.bias", bias))
    )


def _rms_norm(to: Site, step: Step, x: str) -> str:
    norm: RMSNorm = to.module(step.path)
    gamma = to.graph.parameter(f"{step.path}.weight", norm.weight)
    return to.graph.op("RMSNormalization", f"{step.path}/norm", x, gamma, axis=-1, epsilon=norm.eps)


def _add(to: Site, step: Step, a: str, b: str) -> str:
    return to.graph.op("Add", step.output, a, b)


def _mul(to: Site, step: Step, a: str, b: str) -> str:
    return to.graph.op("Mul", step.output, a, b)


def _silu(to: Site, step: Step, x: str) -> str:
    return to.graph.op("Mul", step.output, x, to.graph.op("Sigmoid", f"{step.output}/sigmoid", x))


def _rotary(to: Site, step: Step, *_: str) -> tuple[str, str]:
    """The caller's, see `static_calls.py`."""
    return to.border.angles[step.arguments]


def _rotated_heads(to: Site, step: Step, x: str, cos: str, sin: str) -> tuple[str, str]:
    """Normed per head and rotated, `[1, heads, N, D]`; and only normed, `[1, N·heads, D]`.

    The norm runs over `[1, N·heads, D]`: on four dimensions the NPU's fp16 one spoils some rows.
    """
    graph, path, width = to.graph, step.path, to.module(step.path).weight.shape[0]
    (heads,) = cast(tuple[int], step.arguments)
    normed = _rms_norm(to, step, graph.op("Reshape", f"{path}/each", x, graph.ints(1, -1, width)))
    apart = graph.op("Reshape", f"{path}/heads", normed, graph.ints(1, -1, heads, width))
    turned = graph.op("Transpose", f"{path}/heads_first", apart, perm=[0, 2, 1, 3])
    first = _slice(graph, f"{path}/first", turned, 0, width // 2, axis=3)
    second = graph.op("Neg", f"{path}/negative", _slice(graph, f"{path}/second", turned, width // 2, width, axis=3))
    crossed = graph.op("Concat", f"{path}/crossed", second, first, axis=3)
    along = graph.op("Mul", f"{path}/along", turned, cos)
    name = to.border.results.get(step.output, f"{path}/rotated")
    return graph.op("Add", name, along, graph.op("Mul", f"{path}/across", crossed, sin)), normed


def _attention_of_heads(
    to: Site, step: Step, query: str, key: str, value: str, past_key: str, past_value: str, _: str
) -> tuple[str, str]:
    """Softmax attention of this call's rows over the cache and themselves."""
    graph, border, path = to.graph, to.border, step.path
    new_value = _heads_first(to, border.results[step.outputs[1]], value)
    keys = graph.op("Concat", f"{path}/keys", past_key, key, axis=2)
    values = graph.op("Concat", f"{path}/values", past_value, new_value, axis=2)
    to.joined.update({past_key: keys, past_value: values})
    return _attend(to, path, query, keys, values, border.columns, border.mask), new_value


def _sliding_attention_of_heads(
    to: Site, step: Step, query: str, key: str, value: str, past_key: str, past_value: str, *_: str
) -> tuple[str, str, str]:
    """Softmax attention of this call's rows over the last W-1 keys and values and themselves."""
    graph, border, path, config = to.graph, to.border, step.path, to.decoder.config
    channels = config.num_key_value_heads * config.head_dim
    key = graph.op("Transpose", f"{path}/key_rows", key, perm=[0, 2, 1, 3])
    key = graph.op("Reshape", f"{path}/flat_key", key, graph.ints(1, border.rows, channels))
    assert config.sliding_window is not None
    reach = config.sliding_window - 1
    joined, new = [], []
    for name, past, added, output in (
        ("keys", past_key, key, step.outputs[1]),
        ("values", past_value, value, step.outputs[2]),
    ):
        columns = to.joined[past] = graph.op("Concat", f"{path}/{name}_by_row", past, added, axis=1)
        new.append(_last_columns(to, border.results[output], columns, reach, border.sliding_rows))
        joined.append(_heads_first(to, f"{path}/{name}", columns))
    mixed = _attend(to, path, query, joined[0], joined[1], reach + border.rows, border.sliding_mask)
    return mixed, new[0], new[1]


def _heads_first(to: Site, name: str, x: str) -> str:
    """`[1, rows, kv_heads·D]` → `[1, kv_heads, rows, D]`."""
    config = to.decoder.config
    shape = to.graph.ints(1, -1, config.num_key_value_heads, config.head_dim)
    return to.graph.op("Transpose", name, to.graph.op("Reshape", f"{name}/heads", x, shape), perm=[0, 2, 1, 3])


def _attend(to: Site, path: str, query: str, keys: str, values: str, columns: int, mask: str) -> str:
    """The mixed values `[1, N, heads·D]` of `query [1, heads, N, D]` over `[1, kv_heads, columns, D]`."""
    graph, config, rows = to.graph, to.decoder.config, to.border.rows
    heads, kv_heads, width = config.num_attention_heads, config.num_key_value_heads, config.head_dim
    folded_rows = heads // kv_heads * rows
    folded = graph.op("Reshape", f"{path}/folded", query, graph.ints(1, kv_heads, folded_rows, width))
    turned = graph.op("Transpose", f"{path}/turned_keys", keys, perm=[0, 1, 3, 2])
    scores = graph.op("MatMul", f"{path}/products", folded, turned)
    scores = graph.op("Reshape", f"{path}/scores", scores, graph.ints(1, heads, rows, columns))
    scale = graph.constant("attention.scale", np.array([width**-0.5], dtype=np.float32))
    scaled = graph.op("Mul", f"{path}/scaled", scores, scale)
    masked = graph.op("Add", f"{path}/masked", scaled, mask)
    to.scores[scaled] = masked
    weights = graph.op("Softmax", f"{path}/weights", masked, axis=-1)
    weights = graph.op("Reshape", f"{path}/folded_weights", weights, graph.ints(1, kv_heads, folded_rows, columns))
    mixed = graph.op("MatMul", f"{path}/mixed", weights, values)
    mixed = graph.op("Reshape", f"{path}/unfolded", mixed, graph.ints(1, heads, rows, width))
    mixed = graph.op("Transpose", f"{path}/mixed_rows", mixed, perm=[0, 2, 1, 3])
    return graph.op("Reshape", f"{path}/flat", mixed, graph.ints(1, rows, heads * width))


def _gate_heads(to: Site, step: Step, x: str, gate: str) -> str:
    graph, name, rows, config = to.graph, step.output, to.border.rows, to.decoder.config
    heads, width = config.num_attention_heads, config.head_dim
    weights = graph.op("Sigmoid", f"{name}/sigmoid", gate)
    weights = graph.op("Reshape", f"{name}/weights", weights, graph.ints(1, rows, heads, 1))
    apart = graph.op("Reshape", f"{name}/heads", x, graph.ints(1, rows, heads, width))
    gated = graph.op("Mul", f"{name}/gated", apart, weights)
    return graph.op("Reshape", name, gated, graph.ints(1, rows, heads * width))


def _short_conv(to: Site, step: Step, gated: str, past: str, *_: str) -> tuple[str, str]:
    """L multiply-adds over the old state's rows and this call's."""
    graph, border, path, conv = to.graph, to.border, step.path, cast(ShortConv, to.module(step.path))
    columns = to.joined[past] = graph.op("Concat", f"{path}/columns", past, gated, axis=1)
    new = _last_columns(to, border.results[step.outputs[1]], columns, conv.width - 1, border.conv_rows)
    mixed = ""
    for tap in range(conv.width):
        kernel = graph.parameter(f"{path}.kernel.{tap}", conv.kernel[tap])
        shifted = _slice(graph, f"{path}/shifted.{tap}", columns, tap, tap + border.rows, axis=1)
        product = graph.op("Mul", f"{path}/tap.{tap}", shifted, kernel)
        mixed = graph.op("Add", f"{path}/sum.{tap}", mixed, product) if mixed else product
    if conv.bias is not None:
        mixed = graph.op("Add", f"{path}/biased", mixed, graph.parameter(f"{path}.bias", conv.bias))
    return mixed, new


def _last_columns(to: Site, name: str, columns: str, count: int, chosen: str) -> str:
    """The new state of `columns [1, count + N, channels]`: the `chosen` ones, or all but the first in a call of one."""
    if to.border.rows == 1:
        return _slice(to.graph, name, columns, 1, 1 + count, axis=1)
    return to.graph.op("Gather", name, columns, chosen, axis=1)


def _last_valid(to: Site, step: Step, x: str, _: str) -> str:
    return x if to.border.rows == 1 else to.graph.op("Gather", "logits/row", x, to.border.last_row, axis=1)


def _slice(graph: Graph, name: str, x: str, start: int, end: int, axis: int) -> str:
    return graph.op("Slice", name, x, graph.ints(start), graph.ints(end), graph.ints(axis))


TABLE: dict[str, Callable[..., str | tuple[str, ...]]] = {
    "embedding": _embedding,
    "linear": _linear,
    "rms_norm": _rms_norm,
    "add": _add,
    "mul": _mul,
    "silu": _silu,
    "rotary": _rotary,
    "rotated_heads": _rotated_heads,
    "attention_of_heads": _attention_of_heads,
    "sliding_attention_of_heads": _sliding_attention_of_heads,
    "gate_heads": _gate_heads,
    "short_conv": _short_conv,
    "last_valid": _last_valid,
}
