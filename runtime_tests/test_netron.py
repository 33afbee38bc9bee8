"""The ONNX files in Netron, the viewer that everyone opens such a file with: the real one, in headless Chromium."""

from __future__ import annotations

from collections import Counter

import javascript
import netron
import numpy as np
import onnx
import pytest
from artifacts import WINDOW

from lfm2_export.pipeline import export
from lfm2_export.targets import onnx_graph


def look(path, operator, weight):
    """What Netron draws of a file, and what it says an input of the first such node holds."""
    javascript.need()
    host, port = netron.serve(str(path), address=("127.0.0.1", 0))
    try:
        return javascript.run("netron.mjs", {"url": f"http://{host}:{port}/", "operator": operator, "weight": weight})
    finally:
        netron.stop((host, port))


def check_drawn(seen, model):
    assert seen["complaints"] == []
    shown = {kind: [item for item in seen["drawn"] if item["kind"] == kind] for kind in ("input", "output", "type")}
    constants = {tensor.name for tensor in model.graph.initializer}
    assert {item["text"] for item in shown["input"]} == {value.name for value in model.graph.input} - constants
    assert {item["text"] for item in shown["output"]} == {value.name for value in model.graph.output}
    assert {"name": "int64[batch_size,sequence_length]", "kind": "input", "text": "input_ids"} in shown["input"]
    # a box says its operator, and its own name on hovering; an operator too long for it is cut, and told on hovering
    drawn = Counter(item["name"].strip("[]") if "…" in item["text"] else item["text"] for item in shown["type"])
    assert drawn == Counter(node.op_type for node in model.graph.node)
    named = {item["name"] for item in shown["type"] if "…" not in item["text"]}
    assert named <= {node.name for node in model.graph.node}


def stored(model, operator, slot):
    node = next(node for node in model.graph.node if node.op_type == operator)
    tensor = next(tensor for tensor in model.graph.initializer if tensor.name == node.input[slot])
    return onnx.numpy_helper.to_array(tensor)


@pytest.mark.parametrize(
    ("recipe", "operator", "also"),
    [("onnx-int4", "MatMulNBits", "GroupQueryAttention"), ("onnx-fp32", "MatMul", "CausalConvWithState")],
)
def test_netron_draws_every_node_and_shows_the_weights(recipe, operator, also, make_artifact):
    artifact = make_artifact(recipe, "explicit")
    path = artifact.folder / artifact.manifest.methods[0].file
    model = onnx.load(path)
    seen = look(path, operator, "B")
    check_drawn(seen, model)
    assert {operator, also} <= {item["text"] for item in seen["drawn"]}
    values = stored(model, operator, 1).ravel()[: len(seen["values"])]
    assert len(values) > 500
    np.testing.assert_allclose(seen["values"][: len(values)], values, rtol=1e-6)


def test_netron_reads_weights_that_lie_beside_the_graph(tmp_path, monkeypatch):
    monkeypatch.setattr(onnx_graph, "EMBEDDED_BYTES", 1000)
    artifact, _ = export("nano", "onnx-int4", tmp_path / "nano", overrides=[f"window={WINDOW}"], verify=False)
    path = artifact.folder / artifact.manifest.methods[0].file
    seen = look(path, "MatMulNBits", "B")
    model = onnx.load(path)
    check_drawn(seen, model)
    assert f"/data/{path.name}_data" in seen["read"]
    values = stored(model, "MatMulNBits", 1).ravel()[: len(seen["values"])]
    assert seen["values"] == values.tolist()
