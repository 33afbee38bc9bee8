"""The comparison of two commits' artifacts sees whatever runs otherwise, and nothing else."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import ModelProto, TensorProto, helper, numpy_helper

from benchmarks.onnx_digest import digest
from benchmarks.same_artifacts import PROMISED, differences


def _model() -> ModelProto:
    """Two branches of one input, the weight in one of them; what is written first is up to the test."""
    nodes = [
        helper.make_node("MatMul", ["x", "weight"], ["left"], "first"),
        helper.make_node("LeakyRelu", ["x"], ["right"], "second", alpha=0.5),
        helper.make_node("Sub", ["left", "right"], ["y"], "third"),
    ]
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["rows", 2]) for name in ("x", "y")]
    weight = numpy_helper.from_array(np.array([[1, 2], [3, 4]], dtype=np.float32), "weight")
    return helper.make_model(helper.make_graph(nodes, "graph", ends[:1], ends[1:], [weight]))


def _renamed(model: ModelProto) -> None:
    for node in model.graph.node:
        node.name += "_again"
        for names in (node.input, node.output):
            names[:] = [name if name in ("x", "y") else f"{name}_2" for name in names]
    model.graph.initializer[0].name = "weight_2"


def _reordered(model: ModelProto) -> None:
    first, second, third = (onnx.NodeProto.FromString(node.SerializeToString()) for node in model.graph.node)
    del model.graph.node[:]
    model.graph.node.extend([second, first, third])


def _backwards(model: ModelProto) -> None:
    """As onnxruntime's quantizer leaves its nodes: a reader before what it reads."""
    nodes = [onnx.NodeProto.FromString(node.SerializeToString()) for node in reversed(model.graph.node)]
    del model.graph.node[:]
    model.graph.node.extend(nodes)


def _typed_data(model: ModelProto) -> None:
    model.graph.initializer[0].CopyFrom(helper.make_tensor("weight", TensorProto.FLOAT, [2, 2], [1, 2, 3, 4]))


def _attribute(model: ModelProto) -> None:
    model.graph.node[1].attribute[0].f = 0.25


def _swapped(model: ModelProto) -> None:
    model.graph.node[2].input[:] = ["right", "left"]


def _one_weight(model: ModelProto) -> None:
    model.graph.initializer[0].CopyFrom(helper.make_tensor("weight", TensorProto.FLOAT, [2, 2], [1, 2, 3, 4.0000005]))


def _weight_type(model: ModelProto) -> None:
    bits = np.array([[1, 2], [3, 4]], dtype=np.float32).view(np.int32)
    model.graph.initializer[0].CopyFrom(numpy_helper.from_array(bits, "weight"))


def _shape(model: ModelProto) -> None:
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_param = "tokens"


def _domain(model: ModelProto) -> None:
    model.graph.node[1].domain = "com.microsoft"


def _opset(model: ModelProto) -> None:
    model.opset_import[0].version -= 1


@pytest.mark.parametrize("change", [_renamed, _reordered, _backwards, _typed_data])
def test_names_order_and_encoding_are_no_difference(change: Callable[[ModelProto], None], tmp_path: Path) -> None:
    assert _differences(change, tmp_path) == []


@pytest.mark.parametrize("change", [_attribute, _swapped, _one_weight, _weight_type, _shape, _domain, _opset])
def test_what_runs_otherwise_is_a_difference(change: Callable[[ModelProto], None], tmp_path: Path) -> None:
    assert _differences(change, tmp_path)


def test_external_data_is_read(tmp_path: Path) -> None:
    onnx.save(_model(), tmp_path / "inside.onnx")
    onnx.save(_model(), tmp_path / "outside.onnx", save_as_external_data=True, location="data", size_threshold=0)
    inside, outside = digest(tmp_path / "inside.onnx"), digest(tmp_path / "outside.onnx")
    assert inside.differences(outside) == []
    data = bytearray((tmp_path / "data").read_bytes())
    data[0] ^= 1
    (tmp_path / "data").write_bytes(data)
    assert inside.differences(digest(tmp_path / "outside.onnx")) == ["y computed otherwise (the same operators)"]


def test_a_graph_within_a_graph_is_refused(tmp_path: Path) -> None:
    model = _model()
    inner = helper.make_graph([], "inner", [], [])
    model.graph.node[1].attribute.append(helper.make_attribute("body", inner))
    onnx.save(model, tmp_path / "model.onnx")
    with pytest.raises(ValueError, match="body"):
        digest(tmp_path / "model.onnx")


def test_a_file_or_a_promise_that_changed_is_named(tmp_path: Path) -> None:
    """An XNNPACK artifact, as far as the comparison reads one: its manifest."""
    old, new = tmp_path / "old", tmp_path / "new"
    manifest = dict.fromkeys(PROMISED) | {"target": "xnnpack", "files": {"model.pte": {"sha256": "1"}, "a": {}}}
    old.mkdir()
    (old / "manifest.json").write_text(json.dumps(manifest))
    shutil.copytree(old, new)
    assert differences(old, new) == ("every byte", [])
    manifest |= {"window": 5, "files": {"model.pte": {"sha256": "2"}, "b": {}}}
    (new / "manifest.json").write_text(json.dumps(manifest))
    found = ["manifest: window", "a: only before", "b: only here", "model.pte: other bytes"]
    assert differences(old, new) == ("every byte", found)


def test_an_unknown_recipe_is_refused_before_anything_is_made() -> None:
    command = [sys.executable, "-m", "benchmarks.same_artifacts", "--against", "HEAD", "--recipe", "nothing"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "has no recipe nothing" in " ".join(done.stderr.replace("│", " ").split())


def _differences(change: Callable[[ModelProto], None], folder: Path) -> list[str]:
    before, after = _model(), _model()
    change(after)
    onnx.save(before, folder / "before.onnx")
    onnx.save(after, folder / "after.onnx")
    return digest(folder / "before.onnx").differences(digest(folder / "after.onnx"))
