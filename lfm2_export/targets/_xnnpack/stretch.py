"""One call of the delegate: which layers it computes, its payload, and the shapes it returns."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
from executorch.exir._serialize._named_data_store import NamedDataStore
from executorch.exir.lowered_backend_module import LoweredBackendModule
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from lfm2_export.artifact.manifest import point_name
from lfm2_export.model.decoder import Decoder
from lfm2_export.targets._xnnpack import blocks
from lfm2_export.targets._xnnpack.graph import Edge, Graph, Value

BACKEND = "XnnpackBackend"


class Stretch(NamedTuple):
    """The layers from one attention to the next."""

    finishes: int | None  # the attention layer whose output comes in; None for the first stretch
    convs: tuple[int, ...]
    attention: int | None  # the attention layer whose queries go out; None for the last stretch


class Call(NamedTuple):
    """A delegate call ready to be placed in a traced module."""

    lowered: LoweredBackendModule
    operators: int
    points: list[str]  # what its last outputs show, of a tapped network (see `tap`)


def stretches(layer_types: Sequence[str]) -> list[Stretch]:
    """The network cut at its attention operators."""
    found: list[Stretch] = []
    finishes: int | None = None
    convs: list[int] = []
    for layer, kind in enumerate(layer_types):
        if kind == "conv":
            convs.append(layer)
        else:
            found.append(Stretch(finishes, tuple(convs), layer))
            finishes, convs = layer, []
    return [*found, Stretch(finishes, tuple(convs), None)]


def stretch(decoder: Decoder, part: Stretch, limit: int, weights: NamedDataStore, swapped: bool, tapped: bool) -> Call:
    """Inputs: x `[1, T, H]`, then for the first `rows [T]` and `position [1]`, for later ones the attention's output
    and cos and sin (times only where an attention follows), then the conv states `[1, L-1, H]`.

    Outputs: cos and sin from the first, the conv columns `[1, L-1+T, H]`, queries, keys and values, and x, each only
    where there is one (x is missing where it would be returned as it came). When tapped, points follow.
    """
    config, graph = decoder.config, Graph(weights)
    came = x = graph.input(1, limit, config.hidden_size, varies=1)
    at = None
    if part.finishes is None and part.attention is not None:
        at = blocks.rotary(graph, graph.input(limit, varies=0), graph.input(1), config)
        for angle in at:
            graph.output(angle, varies=1)
    elif part.finishes is not None:
        kv_heads, width = config.num_key_value_heads, config.head_dim
        mixed = graph.input(kv_heads, limit, config.num_attention_heads // kv_heads, width, varies=1)
        if part.attention is not None:
            cos, sin = (graph.input(1, limit, 1, width, varies=1) for _ in range(2))
            at = blocks.Rotary(cos, sin)
    states = [graph.input(1, config.conv_L_cache - 1, config.hidden_size) for _ in part.convs]
    if swapped:
        x = blocks.swap_pairs(graph, x)
    if part.finishes is not None:
        block = decoder.block(part.finishes)
        x = blocks.feed_forward(graph, blocks.attention_out(graph, x, mixed, block), block)
    for layer, state in zip(part.convs, states, strict=True):
        x, columns = blocks.short_conv(graph, x, state, decoder.block(layer))
        graph.output(columns, varies=1)
        x = blocks.feed_forward(graph, x, decoder.block(layer))
    if part.attention is not None and at is not None:
        for value in blocks.queries_keys_values(graph, x, at, decoder.block(part.attention)):
            graph.output(value, varies=1)
    if x != came:
        graph.output(x, varies=1)
    return _call(graph, limit, tap(graph, decoder, varies=1) if tapped else [])


def head(decoder: Decoder, weights: NamedDataStore, tapped: bool) -> Call:
    """x `[1, 1, H]` of the last token → logits `[1, vocab]`."""
    graph, hidden = Graph(weights), decoder.config.hidden_size
    x = graph.reshape(graph.input(1, 1, hidden), 1, hidden, to=(1, hidden))
    graph.output(graph.linear(blocks.norm(graph, x, decoder.embedding_norm), decoder.lm_head))
    return _call(graph, 1, tap(graph, decoder, varies=None) if tapped else [])


def tap(graph: Graph, decoder: Decoder, varies: int | None) -> list[str]:
    """Make what goes into and comes out of every module an output too. Returns the points, in the outputs' order."""
    paths = {module: path for path, module in decoder.named_modules()}
    border = {edge.id for edge in graph.inputs + graph.outputs}
    points = []
    for module, (x, out) in graph.seen.items():
        sides: tuple[tuple[Literal["in", "out"], Value], ...] = (("in", x), ("out", out))
        for side, value in sides:
            shown = graph.copy(value, varies) if value.id in border else value
            border.add(shown.id)
            graph.output(shown, varies)
            points.append(point_name(paths[module], side))
    return points


def _call(graph: Graph, limit: int, points: list[str]) -> Call:
    lowered = LoweredBackendModule(_shapes_alone(graph, limit), BACKEND, graph.serialize(), [])
    return Call(lowered, graph.operators, points)


def _shapes_alone(graph: Graph, limit: int) -> ExportedProgram:
    """What a tracer must know of a payload it cannot look into: a program that returns zeros of the right shapes."""
    example = tuple(torch.zeros(_at(edge, 2, limit)) for edge in graph.inputs)
    dynamic = tuple(None if edge.varies is None else {edge.varies: Dim("T", min=1, max=limit)} for edge in graph.inputs)
    module = _Zeros([(edge.shape, edge.varies) for edge in graph.outputs], limit)
    return torch.export.export(module, example, dynamic_shapes=(dynamic,))


def _at(edge: Edge, tokens: int, limit: int) -> list[int]:
    """Its shape when T is `tokens`."""
    return [size + (tokens - limit) * (axis == edge.varies) for axis, size in enumerate(edge.shape)]


class _Zeros(nn.Module):
    def __init__(self, results: list[tuple[tuple[int, ...], int | None]], limit: int) -> None:
        super().__init__()
        self.results, self.limit = results, limit

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        x = inputs[0]
        return tuple(x.new_zeros(_at(Edge(shape, varies, 0), x.shape[1], self.limit)) for shape, varies in self.results)
