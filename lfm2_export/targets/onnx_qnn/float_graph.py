"""A method's graph in float: the trace of the model, written step by step for a fixed number of rows."""

from __future__ import annotations

from typing import NamedTuple

from lfm2_export.artifact.manifest import point_name
from lfm2_export.graph.trace import trace
from lfm2_export.graph.walk import probes, walk
from lfm2_export.model.decoder import Decoder
from lfm2_export.targets.onnx_graph import Graph
from lfm2_export.targets.onnx_qnn.border import Border
from lfm2_export.targets.onnx_qnn.passes import heads_apart
from lfm2_export.targets.onnx_qnn.table import TABLE, Site

_OPSET, _IR_VERSION = 23, 11


class FloatGraph(NamedTuple):
    """A graph, and what it calls the values that its quantization or a probe must find."""

    graph: Graph
    points: dict[str, str]  # what goes into or comes out of a module → its value
    joined: dict[str, str]  # a state that comes in → the tensor that holds it and what is new
    scores: dict[str, str]  # attention's scores before the mask → after it


def build(decoder: Decoder, rows: int, window: int, hide: float) -> FloatGraph:
    """Build the graph of a call of `rows` tokens; `hide` is subtracted from the score of a hidden column."""
    config = decoder.config
    traced = trace(config, padded=rows > 1)  # a lone row needs no padding
    network = heads_apart(traced, config)
    graph = Graph("lfm2", _OPSET, _IR_VERSION)
    border = Border(graph, network, config, rows, window, hide)
    tables = tuple(step.path for step in network.of_kind("embedding"))
    site = Site(graph, border, decoder, tables, joined={}, scores={})
    values = walk(network, border.values, lambda step, inputs: TABLE[step.kind](site, step, *inputs))
    graph.op("Reshape", "logits", values[network.logits], graph.ints(1, config.vocab_size))
    points = {point_name(path, side): values[value] for path, side, value in probes(traced.steps)}
    return FloatGraph(graph, points, site.joined, site.scores)
