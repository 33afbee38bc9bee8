"""A mixture of experts in onnxruntime's own operators, which compute a token's chosen experts and no others.

`QMoE` takes integer weights in MatMulNBits' packing and rounds activations as that does; `MoE` takes float ones. Both
choose by themselves, so they are given weights that are zero but for what the router has chosen: `QMoE` as they are,
`MoE`, which makes a softmax of what it chooses by, as logarithms. On CPUs both want w1 and w3 row by row in turns.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple, cast

import numpy as np
from torch import nn

from lfm2_export.model.experts import ExpertChoice, Experts
from lfm2_export.model.layers import FeedForward
from lfm2_export.quantize.apply import QuantizedWeight, quantized_weight
from lfm2_export.targets.onnx.weights import accuracy_level, pack
from lfm2_export.targets.onnx_graph import CONTRIB, Graph, float_array

_LEAST = 1e-30  # in the place of a weight of zero, which has no logarithm
_AS_STORED = 0  # weights_prepacked: in MatMulNBits' layout
_SWIGLU: dict[str, str | int | float] = {
    "activation_type": "swiglu",
    "swiglu_fusion": 1,
    "activation_alpha": 1.0,
    "activation_beta": 0.0,
}

Matrices = Sequence[tuple[nn.Module, ...]]  # of each expert, one or two


def choose_experts(graph: Graph, path: str, choice: ExpertChoice, scores: str) -> tuple[str, str]:
    """Write the router: scores `[B, T, experts]` → the weights and int64 numbers of the chosen, `[B, T, k]` each."""
    all_weights = graph.op("Sigmoid", f"{path}/all_weights", scores)
    by = all_weights
    if choice.expert_bias is not None:
        by = graph.op("Add", f"{path}/biased", by, graph.parameter(f"{path}.expert_bias", choice.expert_bias))
    outputs = (f"{path}/best", f"{path}/chosen")
    _, chosen = graph.op_many("TopK", f"{path}/TopK", (by, graph.ints(choice.count)), outputs)
    weights = graph.op("GatherElements", f"{path}/weights", all_weights, chosen, axis=-1)
    if choice.normalized:
        least = graph.constant("experts/least_sum", np.array(1e-6, dtype=graph.real))
        total = graph.op("ReduceSum", f"{path}/sum", weights, graph.ints(-1))
        weights = graph.op("Div", f"{path}/normalized", weights, graph.op("Add", f"{path}/total", total, least))
    if choice.scale != 1.0:
        scale = graph.constant("experts/scale", np.array(choice.scale, dtype=graph.real))
        weights = graph.op("Mul", f"{path}/scaled", weights, scale)
    return weights, chosen


class Routed(NamedTuple):
    """What a router made of a layer's tokens."""

    weights: str  # `[B, T, k]`
    rows: str  # `[B·T, experts]`: the same, zero for every other expert
    top: int  # k


def routed(graph: Graph, path: str, weights: str, chosen: str, none: str, count: int, of: int) -> Routed:
    """Spread the weights of `count` chosen experts over all `of` them; `none` is `[B, T, experts]`, zeros."""
    spread = graph.op("ScatterElements", f"{path}/spread", none, chosen, weights, axis=-1)
    return Routed(weights, graph.op("Reshape", f"{path}/rows", spread, graph.ints(-1, of)), count)


def experts(graph: Graph, path: str, modules: Experts, x: str, by: Routed) -> str:
    """Write `x [B, T, H]` through its chosen experts. The matrices are all fp32 or quantized alike."""
    each = [cast(FeedForward, module) for module in modules]
    gated, down = [(expert.w1, expert.w3) for expert in each], [(expert.w2,) for expert in each]
    if quantized_weight(each[0].w1) is None:
        return _float(graph, path, gated, down, x, by)
    inputs = (x, by.rows, *_packed(graph, f"{path}.gate_up", gated), "", *_packed(graph, f"{path}.down", down))
    grid = _grid(each[0].w1)
    return graph.op(
        "QMoE",
        f"{path}/QMoE",
        *(*inputs, *7 * ("",), by.rows),
        domain=CONTRIB,
        k=by.top,
        expert_weight_bits=grid.bits,
        block_size=grid.group,
        accuracy_level=accuracy_level(each[0].w1),
        weights_prepacked=_AS_STORED,
        normalize_routing_weights=0,
        **_SWIGLU,
    )


def _float(graph: Graph, path: str, gated: Matrices, down: Matrices, x: str, by: Routed) -> str:
    """`MoE` weighs by a softmax over the chosen ones: their weights but for the sum, which is multiplied in after."""
    least = graph.constant("experts/least", np.array(_LEAST, dtype=graph.real))
    logarithms = graph.op("Log", f"{path}/logarithms", graph.op("Max", f"{path}/positive", by.rows, least))
    stored = [
        graph.weight(f"{path}.{name}", graph.real, _shape(parts), partial(_stacked, parts, _float_array))
        for name, parts in (("gate_up", gated), ("down", down))
    ]
    mixed = graph.op(
        "MoE",
        f"{path}/MoE",
        *(x, logarithms, stored[0], "", stored[1]),
        domain=CONTRIB,
        k=by.top,
        normalize_routing_weights=1,
        **_SWIGLU,
    )
    total = graph.op("ReduceSum", f"{path}/total_weight", by.weights, graph.ints(-1))
    return graph.op("Mul", f"{path}/mixed", mixed, total)


def _packed(graph: Graph, name: str, parts: Matrices) -> tuple[str, str]:
    """Store the matrices of all experts, packed, and their scales beside them."""
    grid = _grid(parts[0][0])
    count, rows, columns = _shape(parts)
    packed = graph.weight(
        f"{name}_q{grid.bits}",
        np.uint8,
        (count, rows, columns * grid.bits // 8),
        partial(_stacked, parts, lambda part: pack(_grid(part).values.numpy(), grid.bits, grid.group)),
    )
    scales = graph.weight(
        f"{name}_scales",
        graph.real,
        (count, rows, columns // grid.group),
        partial(_stacked, parts, lambda part: float_array(_grid(part).scales)),
    )
    return packed, scales


def _stacked(parts: Matrices, made: Callable[[nn.Module], np.ndarray]) -> np.ndarray:
    """Every expert's matrices, the rows of its first and second in turns: `[experts, rows, …]`."""
    stack = [np.stack([made(part) for part in of_one], axis=1) for of_one in parts]
    return np.stack([turns.reshape(-1, int(np.prod(turns.shape[2:]))) for turns in stack])


def _float_array(part: nn.Module) -> np.ndarray:
    return float_array(cast(nn.Linear, part).weight)


def _shape(parts: Matrices) -> tuple[int, int, int]:
    rows, columns = cast(nn.Linear, parts[0][0]).weight.shape
    return len(parts), len(parts[0]) * rows, columns


def _grid(part: nn.Module) -> QuantizedWeight:
    found = quantized_weight(part)
    assert found is not None  # all of a layer are quantized alike: see `refuse_unlike`
    return found
