"""One call of the delegate: its payload, written step by step, and the shapes that it returns."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import torch
from executorch.exir.lowered_backend_module import LoweredBackendModule
from torch import Tensor, nn

from lfm2_export.artifact.manifest import point_name
from lfm2_export.graph.cut import Call
from lfm2_export.graph.walk import probes
from lfm2_export.targets.xnnpack.border import declared
from lfm2_export.targets.xnnpack.delegate_graph import Extent, Graph, Value
from lfm2_export.targets.xnnpack.delegated import Place
from lfm2_export.targets.xnnpack.table import TABLE, Delegated
from lfm2_export.targets.xnnpack.weights import Weights

BACKEND = "XnnpackBackend"


class Payload(NamedTuple):
    """A delegate call, its weights in the store."""

    graph: Graph
    outputs: dict[str, Extent]  # value that comes out → its extent, in order
    points: tuple[str, ...]  # what its further outputs show, of a probed call

    def lowered(self) -> LoweredBackendModule:
        """Return the call ready to be placed in a traced module."""
        return LoweredBackendModule(_ShapesAlone(self.graph), BACKEND, self.graph.serialize(), [])


def written(call: Call, model: nn.Module, known: Mapping[str, Extent], weights: Weights, probed: bool) -> Payload:
    """Write a call. `known` has the extent of every input; weights go to the store.

    When probed, what goes into and comes out of every module comes out as well.
    """
    graph = Graph(weights)
    values: dict[str, Value] = {}
    for part in declared(call):
        if isinstance(part, str):
            values[part] = graph.input(known[part])
            continue
        entry = TABLE[part.kind]
        assert isinstance(entry, Delegated)
        place = Place(model.get_submodule(part.path), part.arguments)
        made = entry.write(graph, place, *(values[value] for value in part.inputs))
        values |= zip(part.outputs, (made,) if isinstance(made, Value) else made, strict=True)
    for value in call.outputs:
        graph.output(values[value])
    points = tuple(_probe(graph, call, values)) if probed else ()
    return Payload(graph, {value: values[value] for value in call.outputs}, points)


def _probe(graph: Graph, call: Call, values: Mapping[str, Value]) -> Iterator[str]:
    """Make what goes into and comes out of every module an output too, and yield the points, in the outputs' order."""
    border = {value.id for value in graph.inputs + graph.outputs}
    for path, side, value in probes(call.steps):
        shown = graph.copy(values[value]) if values[value].id in border else values[value]
        border.add(shown.id)
        graph.output(shown)
        yield point_name(path, side)


class _ShapesAlone:
    """What a tracer must know of a payload it cannot look into, in place of the program that others are made from.

    A program in these few lines' place, exported once for each kind of border, took a sixth of a lowering.
    """

    def __init__(self, graph: Graph) -> None:
        self._zeros = _Zeros(graph.inputs, graph.outputs)
        self.graph = torch.fx.Graph()  # whose operators' names nobody asks for
        self.graph.output(())

    def module(self) -> nn.Module:
        """Return what computes zeros of the right shapes."""
        return self._zeros


class _Zeros(nn.Module):
    """Tells the number of tokens by the first input that varies with it."""

    def __init__(self, inputs: Sequence[Extent], results: Sequence[Extent]) -> None:
        super().__init__()
        self.results = results
        self.teller = next((number for number, value in enumerate(inputs) if value.varies is not None), 0)
        self.axis = inputs[self.teller].varies or 0
        self.most = inputs[self.teller].shape[self.axis]

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        x = inputs[self.teller]
        more = x.shape[self.axis] - self.most
        return tuple(x.new_zeros(_sizes(extent, more)) for extent in self.results)


def _sizes(extent: Extent, more: int) -> list[int]:
    """The shape for that many tokens more (or, negative, fewer) than there may be."""
    return [size + more * (axis == extent.varies) for axis, size in enumerate(extent.shape)]
