"""More outputs for a finished model: what goes into and comes out of the decoder's modules, for `parity --trace`.

They are added behind quantization and change nothing of it: a quantized value is read from its integers, by a
DequantizeLinear of the probe's own.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import onnx
from onnx import TensorProto, helper

from lfm2_export.artifact.manifest import PROBE, TensorSpec


def add_probes(model: onnx.ModelProto, written: Path, points: Mapping[str, str]) -> list[TensorSpec]:
    """Add an output for every point, in place, and return what they are.

    `points` names the float graph's value at each; `written` is that graph's file, which has their shapes.
    """
    shapes = _shapes(written)
    quantizers = {node.input[0]: node for node in model.graph.node if node.op_type == "QuantizeLinear"}
    specs = []
    for point, value in points.items():
        name = f"{PROBE}{point}"
        if value in quantizers:
            quantizer = quantizers[value]
            given = [quantizer.output[0], *quantizer.input[1:]]
            model.graph.node.append(helper.make_node("DequantizeLinear", given, [name], name))
        else:
            model.graph.node.append(helper.make_node("Identity", [value], [name], name))
        model.graph.output.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, shapes[value]))
        specs.append(TensorSpec(name=name, dtype="float32", shape=list(shapes[value])))
    return specs


def _shapes(written: Path) -> dict[str, list[int]]:
    """Shape of every value of a graph; its weights stay in their file."""
    graph = onnx.shape_inference.infer_shapes(onnx.load(written, load_external_data=False)).graph
    return {info.name: [axis.dim_value for axis in info.type.tensor_type.shape.dim] for info in graph.value_info}
