"""One call of the delegate: its payload, written step by step, and the shapes that it returns."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, NamedTuple

import torch
from executorch.exir._serialize._named_data_store import NamedDataStore
from executorch.exir.lowered_backend_module import LoweredBackendModule
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from lfm2_export.artifact.manifest import point_name
from lfm2_export.graph.cut import Call
from lfm2_export.graph.steps import Step
from lfm2_export.model.decoder import Decoder
from lfm2_export.targets.xnnpack.border import declared
from lfm2_export.targets.xnnpack.delegate_graph import Extent, Graph, Value
from lfm2_export.targets.xnnpack.delegated import Place
from lfm2_export.targets.xnnpack.table import TABLE, Delegated

BACKEND = "XnnpackBackend"


class Payload(NamedTuple):
    """A delegate call ready to be placed in a traced module."""

    lowered: LoweredBackendModule
    outputs: dict[str, Extent]  # value that comes out → its extent, in order
    points: tuple[str, ...]  # what its further outputs show, of a probed call
    operators: int


class Note(NamedTuple):
    """A step as it was written: what went in, what came out."""

    step: Step
    inputs: tuple[Value, ...]
    outputs: tuple[Value, ...]


def written(
    call: Call, decoder: Decoder, known: Mapping[str, Extent], limit: int, weights: NamedDataStore, probed: bool
) -> Payload:
    """Write a call of at most `limit` tokens. `known` has the extent of every input; weights go to the store.

    When probed, what goes into and comes out of every module comes out as well.
    """
    graph = Graph(weights)
    values: dict[str, Value] = {}
    notes: list[Note] = []
    for part in declared(call):
        if isinstance(part, str):
            values[part] = graph.input(known[part])
            continue
        note = Note(part, inputs := tuple(values[value] for value in part.inputs), _write(graph, decoder, part, inputs))
        values |= zip(part.outputs, note.outputs, strict=True)
        notes.append(note)
    for value in call.outputs:
        graph.output(values[value])
    points = tuple(_probe(graph, decoder, notes)) if probed else ()
    lowered = LoweredBackendModule(_shapes_alone(graph, limit), BACKEND, graph.serialize(), [])
    return Payload(lowered, {value: values[value] for value in call.outputs}, points, graph.operators)


def _write(graph: Graph, decoder: Decoder, step: Step, inputs: tuple[Value, ...]) -> tuple[Value, ...]:
    entry = TABLE[step.kind]
    assert isinstance(entry, Delegated)
    result = entry.write(graph, Place(decoder.get_submodule(step.path), step.arguments), *inputs)
    return (result,) if isinstance(result, Value) else result


def _probe(graph: Graph, decoder: Decoder, notes: list[Note]) -> list[str]:
    """Make what goes into and comes out of every innermost module an output too. Returns the points, in their order."""
    border = {value.id for value in graph.inputs + graph.outputs}
    points = []
    for step, (x, *_), (out, *_) in notes:
        if any(decoder.get_submodule(step.path).children()):
            continue
        sides: tuple[tuple[Literal["in", "out"], Value], ...] = (("in", x), ("out", out))
        for side, value in sides:
            shown = graph.copy(value) if value.id in border else value
            border.add(shown.id)
            graph.output(shown)
            points.append(point_name(step.path, side))
    return points


def _shapes_alone(graph: Graph, limit: int) -> ExportedProgram:
    """What a tracer must know of a payload it cannot look into: a program that returns zeros of the right shapes."""
    example = tuple(torch.zeros(_sizes(value, 2 - limit)) for value in graph.inputs)
    dynamic = tuple(None if x.varies is None else {x.varies: Dim("T", min=1, max=limit)} for x in graph.inputs)
    module = _Zeros(graph.inputs, graph.outputs)
    return torch.export.export(module, example, dynamic_shapes=(dynamic,))


def _sizes(extent: Extent, more: int) -> list[int]:
    """The shape for that many tokens more (or, negative, fewer) than there may be."""
    return [size + more * (axis == extent.varies) for axis, size in enumerate(extent.shape)]


class _Zeros(nn.Module):
    """Tells the number of tokens by the first input that varies with it."""

    def __init__(self, inputs: list[Value], outputs: list[Value]) -> None:
        super().__init__()
        self.results = [Extent(value.shape, value.varies) for value in outputs]
        self.teller = next((number for number, value in enumerate(inputs) if value.varies is not None), 0)
        self.axis = inputs[self.teller].varies or 0
        self.most = inputs[self.teller].shape[self.axis]

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        x = inputs[self.teller]
        more = x.shape[self.axis] - self.most
        return tuple(x.new_zeros(_sizes(extent, more)) for extent in self.results)
