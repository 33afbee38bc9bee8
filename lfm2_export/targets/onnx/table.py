"""How onnxruntime writes each kind of step: the network's own kinds, and those of `passes.py`.

Inside, the order of the arithmetic is the eager model's. An entry gets a step and what the graph calls its inputs, and
returns what it calls the outputs.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, cast

import numpy as np
import torch

from lfm2_export.graph.steps import Step
from lfm2_export.model.decoder import Decoder
from lfm2_export.model.experts import ExpertChoice
from lfm2_export.model.layers import RMSNorm
from lfm2_export.model.operators import rotary_tables
from lfm2_export.model.short_conv import ShortConv
from lfm2_export.targets.onnx.border import Border
from lfm2_export.targets.onnx.elementary import ELEMENTARY
from lfm2_export.targets.onnx.experts import choose_experts, experts, routed
from lfm2_export.targets.onnx.weights import embedding, linear, linear_of_table, linears
from lfm2_export.targets.onnx_graph import CONTRIB, Graph

_FAR = 2**62  # past any axis: slice to its end


class Site(NamedTuple):
    """The place where steps are written: the graph and its border, the weights, and what the recipe chose."""

    graph: Graph
    border: Border
    decoder: Decoder
    tables: tuple[str, ...]  # the embeddings' paths: a tied product reads what is stored there
    fused_embedding: bool
    conv: str  # the recipe's option

    def module(self, path: str) -> Any:
        """Return the decoder's module of that path."""
        return self.decoder.get_submodule(path)


def _embedding(to: Site, step: Step, tokens: str) -> str:
    return embedding(to.graph, step.path, to.module(step.path), tokens, to.fused_embedding)


def _linear(to: Site, step: Step, x: str) -> str:
    module = to.module(step.path)
    for table in to.tables:
        if written := linear_of_table(to.graph, step.path, module, table, to.module(table), x):
            return written
    return linear(to.graph, step.path, module, x)


def _linears(to: Site, step: Step, x: str) -> tuple[str, ...]:
    paths = cast(tuple[str, ...], step.arguments)
    return linears(to.graph, step.path, {path: to.module(path) for path in paths}, x)


def _add_norm(to: Site, step: Step, x: str, delta: str) -> tuple[str, str]:
    norm: RMSNorm = to.module(step.path)
    gamma = to.graph.parameter(f"{step.path}.weight", norm.weight)
    normed, total = f"{step.path}/norm", f"{step.path}/sum"
    kind = "SkipSimplifiedLayerNormalization"
    outputs = (normed, "", "", total)
    to.graph.op_many(kind, f"{step.path}/{kind}", (x, delta, gamma), outputs, CONTRIB, epsilon=norm.eps)
    return normed, total


def _rotary(to: Site, step: Step, *_: str) -> tuple[str, ...]:
    """Tables over the whole window, `[window, width/2]`; what reads them knows each row's position."""
    return _tables(to, step, to.border.cache)


def _rotary_of_rows(to: Site, step: Step, *_: str) -> tuple[str, ...]:
    """The same for rows that are turned outside the attention operator."""
    return _tables(to, step, to.graph.real)


def _tables(to: Site, step: Step, dtype: str) -> tuple[str, ...]:
    width, theta, turned = cast(tuple[int, float, int], step.arguments)
    name = step.output.partition(":")[0]
    cos, sin = rotary_tables(torch.arange(to.border.window), width, theta, turned)
    halves = {f"{name}.cos": cos[:, : width // 2], f"{name}.sin": sin[:, : width // 2]}
    return tuple(to.graph.parameter(name, half, dtype) for name, half in halves.items())


def _rotate(to: Site, step: Step, x: str, cos: str, sin: str) -> str:
    return to.graph.op("RotaryEmbedding", step.output, x, to.border.position_ids, cos, sin, domain=CONTRIB)


def _sliding_attention(
    to: Site, step: Step, query: str, key: str, value: str, past_key: str, past_value: str, *_: str
) -> tuple[str, str, str]:
    """Plain operators over W-1+T columns; heads that share keys are an axis of their own."""
    graph, border, path = to.graph, to.border, step.path
    (width,) = cast(tuple[int], step.arguments)
    kv_heads = to.decoder.config.num_key_value_heads
    keys = graph.op("Concat", f"{path}/keys", past_key, key, axis=1)
    values = graph.op("Concat", f"{path}/values", past_value, value, axis=1)
    new = [
        graph.op("GatherND", border.results[output], columns, border.sliding_columns, batch_dims=1)
        for output, columns in zip(step.outputs[1:], (keys, values), strict=True)
    ]

    def by_head(name: str, x: str, *order: int) -> str:
        apart = graph.op("Reshape", f"{path}/{name}_apart", x, graph.ints(0, 0, kv_heads, -1, width))
        return graph.op("Transpose", f"{path}/{name}_by_head", apart, perm=list(order))

    scale = graph.constant(f"sliding/scale_{width}", np.array(width**-0.5, dtype=graph.real))
    queries = graph.op("Mul", f"{path}/scaled", by_head("query", query, 0, 2, 3, 1, 4), scale)
    scores = graph.op("MatMul", f"{path}/scores", queries, by_head("keys", keys, 0, 2, 3, 4, 1))
    seen = graph.op("Add", f"{path}/seen", scores, border.sliding_mask)
    weights = graph.op("Softmax", f"{path}/weights", seen, axis=-1)
    mixed = graph.op("MatMul", f"{path}/attended", weights, by_head("values", values, 0, 2, 3, 1, 4))
    rows = graph.op("Transpose", f"{path}/by_row", mixed, perm=[0, 3, 1, 2, 4])
    return graph.op("Reshape", f"{path}/mixed", rows, graph.ints(0, 0, -1)), new[0], new[1]


def _gate_heads(to: Site, step: Step, x: str, gate: str) -> str:
    graph, name, heads = to.graph, step.output, to.decoder.config.num_attention_heads
    apart = graph.op("Reshape", f"{name}/apart", x, graph.ints(0, 0, heads, -1))
    opened = graph.op("Unsqueeze", f"{name}/open", graph.op("Sigmoid", f"{name}/sigmoid", gate), graph.ints(3))
    return graph.op("Reshape", name, graph.op("Mul", f"{name}/gated", apart, opened), graph.ints(0, 0, -1))


def _choose_experts(to: Site, step: Step, scores: str, *_: str) -> tuple[str, str]:
    choice = cast(ExpertChoice, to.module(step.path))
    return choose_experts(to.graph, step.path, choice, scores)


def _experts(to: Site, step: Step, x: str, weights: str, chosen: str) -> str:
    modules, count = to.module(step.path), to.decoder.config.num_experts_per_tok
    by = routed(to.graph, step.path, weights, chosen, to.border.no_expert, count, len(modules))
    return experts(to.graph, step.path, modules, x, by)


def _rotary_attention(
    to: Site, step: Step, query: str, key: str, value: str, past_key: str, past_value: str, _: str, cos: str, sin: str
) -> tuple[str, ...]:
    """RoPE, cache and softmax in one fused operator."""
    graph, border, config = to.graph, to.border, to.decoder.config
    if border.cache != graph.real:
        named = zip(("query", "key", "value"), (query, key, value), strict=True)
        query, key, value = (graph.cast(f"{step.path}/{name}", tensor, border.cache) for name, tensor in named)
    kind = "GroupQueryAttention"
    mixed, *new = graph.op_many(
        kind,
        f"{step.path}/{kind}",
        (query, key, value, past_key, past_value, border.last_index, border.total, cos, sin),
        (f"{step.path}/mixed", *(border.results[output] for output in step.outputs[1:])),
        CONTRIB,
        num_heads=config.num_attention_heads,
        kv_num_heads=config.num_key_value_heads,
        do_rotary=1,
    )
    if border.cache != graph.real:
        mixed = graph.cast(f"{step.path}/attended", mixed, graph.real)
    return mixed, *new


def _short_conv(to: Site, step: Step, gated: str, past: str, *_: str) -> tuple[str, str]:
    """The convolution over the old state's rows and this call's, time before channels as in the model."""
    graph, path, conv = to.graph, step.path, cast(ShortConv, to.module(step.path))
    old = graph.op("Slice", f"{path}/old", past, graph.ints(1), graph.ints(conv.width), graph.ints(2))
    old_rows = graph.op("Transpose", f"{path}/old_rows", old, perm=[0, 2, 1])
    rows = graph.op("Concat", f"{path}/rows", old_rows, gated, axis=1)
    last = graph.op("GatherND", f"{path}/last", rows, to.border.conv_columns, batch_dims=1)
    present = graph.op("Transpose", to.border.results[step.outputs[1]], last, perm=[0, 2, 1])
    if to.conv == "channels_last":
        return _fused(to, path, conv, gated, old_rows, f"{path}/mixed", channels_last=1), present
    return _fused_taps(to, path, conv, gated, old) if to.conv == "fused" else _taps(to, path, conv, rows), present


def _taps(to: Site, path: str, conv: ShortConv, rows: str) -> str:
    """The convolution as L multiply-adds over shifted views: for one token a little cheaper than onnxruntime's Conv."""
    graph, mixed = to.graph, ""
    for tap, end in enumerate((*to.border.tap_ends, graph.ints(_FAR))):
        view = graph.op("Slice", f"{path}/view_{tap}", rows, graph.ints(tap), end, graph.ints(1))
        product = graph.op("Mul", f"{path}/tap_{tap}", view, graph.parameter(f"{path}.kernel.{tap}", conv.kernel[tap]))
        mixed = graph.op("Add", f"{path}/taps_{tap}", mixed, product) if mixed else product
    if conv.bias is None:
        return mixed
    return graph.op("Add", f"{path}/biased", mixed, graph.parameter(f"{path}.bias", conv.bias))


def _fused_taps(to: Site, path: str, conv: ShortConv, gated: str, old: str) -> str:
    """The operator with time after channels, as the first onnxruntimes that had it want it."""
    gated = to.graph.op("Transpose", f"{path}/gated_time_last", gated, perm=[0, 2, 1])
    mixed = _fused(to, path, conv, gated, old, f"{path}/mixed_time_last")
    return to.graph.op("Transpose", f"{path}/mixed", mixed, perm=[0, 2, 1])


def _fused(to: Site, path: str, conv: ShortConv, gated: str, old: str, mixed: str, **layout: int) -> str:
    """The convolution in onnxruntime's own operator. Its new state is not used: it takes padding for tokens."""
    graph, kind = to.graph, "CausalConvWithState"
    kernel = graph.parameter(f"{path}.kernel", conv.kernel.t().unsqueeze(1))
    bias = "" if conv.bias is None else graph.parameter(f"{path}.bias", conv.bias)
    outputs = (mixed, f"{path}/padded_state")
    return graph.op_many(kind, f"{path}/{kind}", (gated, kernel, bias, old), outputs, CONTRIB, **layout)[0]


def _last_valid(to: Site, step: Step, x: str, _: str) -> str:
    """As many of the last valid rows as the caller asks for, by default one: `[B, kept, hidden]`."""
    return to.graph.op("GatherND", "logits/hidden", x, to.border.kept_rows, batch_dims=1)


TABLE: dict[str, Callable[..., str | tuple[str, ...]]] = {
    **ELEMENTARY,
    "embedding": _embedding,
    "linear": _linear,
    "linears": _linears,
    "add_norm": _add_norm,
    "rotary": _rotary,
    "rotary_attention": _rotary_attention,
    "rotary_of_rows": _rotary_of_rows,
    "rotate": _rotate,
    "sliding_attention": _sliding_attention,
    "gate_heads": _gate_heads,
    "choose_experts": _choose_experts,
    "experts": _experts,
    "short_conv": _short_conv,
    "last_valid": _last_valid,
}
