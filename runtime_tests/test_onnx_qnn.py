"""The onnx-qnn recipes on Qualcomm's emulator: proven whole, compiled for a chip, and refused where they must be."""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from artifacts import ON_EMULATOR
from onnx import TensorProto, helper, numpy_helper

from lfm2_export.artifact.folder import Artifact, seal
from lfm2_export.checkpoint.config import from_dict
from lfm2_export.errors import ArtifactError, LoweringError
from lfm2_export.parity.prove import prove
from lfm2_export.qualcomm import provider
from lfm2_export.runtimes import onnxruntime_qnn
from lfm2_export.static_calls import graph_inputs, static_state

pytest.importorskip("onnxruntime_qnn", reason="QNN is not installed: pip install 'lfm2-export[qnn]'")

FLOAT = ("window=96",)  # emulation takes time; long enough for most of nano's questions
INTEGER = (*FLOAT, "calibration.tokens=96", "calibration.windows=12")
RECIPES = ["onnx-qnn-fp16", "onnx-qnn-16a8w", "onnx-qnn-16a4w"]


def taken_by_the_npu(artifact: Artifact, file: str) -> int:
    """How many operators a whole graph has for the NPU, after what onnxruntime does to it."""
    graph = onnx.load(artifact.folder / file, load_external_data=False).graph
    kinds = Counter(node.op_type for node in graph.node)
    if "DequantizeLinear" in kinds:  # every reader of a quantized value gets one of its own
        read = Counter(name for node in graph.node for name in node.input) + Counter(o.name for o in graph.output)
        return len(graph.node) + sum(read[n.output[0]] - 1 for n in graph.node if n.op_type == "DequantizeLinear")
    # constants are folded: the casts of fp16 weights, and the shared matrix turned for the head; in attention the keys'
    # transposition moves behind their rotation, whose two halves then have one each
    attention = artifact.manifest.source.config["layer_types"].count("full_attention")
    return len(graph.node) - kinds["Cast"] - 1 + attention


@pytest.mark.slow
@pytest.mark.parametrize("recipe", RECIPES)
def test_every_recipe_is_proven_on_the_emulator_without_fallback(recipe, make_artifact, nano):
    artifact = make_artifact(recipe, "explicit", *(FLOAT if recipe == "onnx-qnn-fp16" else INTEGER))
    report = prove(artifact, nano, effort=ON_EMULATOR)
    assert [gate for gate in report.gates if gate.status == "fail"] == []
    (runtime,) = report.runtimes
    assert runtime.status == "pass"
    assert runtime.weights_error == 0
    assert runtime.lowering.top1 == 1
    assert {law.name for law in runtime.laws if law.passed} >= {
        *("reset", "chunked prefill", "padded prefill", "window edge", "snapshot")
    }
    for method in artifact.manifest.methods:
        assert method.delegation.calls == 1
        assert method.delegation.delegated == taken_by_the_npu(artifact, method.file)
        assert method.delegation.fallback == {}


@pytest.mark.slow
@pytest.mark.parametrize("soc", ["SM8350", "SM8750"])
def test_a_compiled_model_of_each_chip_computes_what_the_graph_does(soc, make_artifact, tmp_path: Path):
    artifact: Artifact = make_artifact("onnx-qnn-16a8w", "explicit", *INTEGER)
    context = tmp_path / f"decode.{soc}.onnx"
    graph = provider.open_model(artifact.folder / "decode.onnx", soc, context).session
    compiled = provider.open_model(context, soc)
    assert compiled.operators == 1  # nothing is left of the graph but the compiled whole
    config, window = from_dict(artifact.manifest.source.config, "manifest.json"), artifact.manifest.window
    given = static_state(config, window) | graph_inputs(config, [5], 0, 1, window)
    inputs = {name: tensor.numpy() for name, tensor in given.items()}
    for ours, theirs in zip(compiled.session.run(None, inputs), graph.run(None, inputs), strict=True):
        np.testing.assert_array_equal(ours, theirs)


@pytest.mark.slow
def test_an_artifact_with_a_context_binary_runs_it(make_artifact, tmp_path: Path):
    artifact: Artifact = make_artifact("onnx-qnn-fp16", "explicit", *FLOAT, "options.context_binary=true")
    assert [method.file for method in artifact.manifest.methods] == ["decode.SM8650.onnx", "prefill.SM8650.onnx"]
    plain = make_artifact("onnx-qnn-fp16", "explicit", *FLOAT)
    sessions = [onnxruntime_qnn.RUNTIME.open_session(each.folder, each.manifest) for each in (artifact, plain)]
    first, second = ([session.prefill([3, 4, 5]), session.decode(6)] for session in sessions)
    np.testing.assert_array_equal(first, second)
    for each in (artifact, plain):
        forged = each.manifest.model_copy(update={"window": 99999})
        with pytest.raises(ArtifactError, match="the manifest says 99999"):
            onnxruntime_qnn.RUNTIME.open_session(each.folder, forged)


def test_an_operator_outside_the_npu_is_refused_by_name(tmp_path: Path):
    square, number = ("x", TensorProto.FLOAT, [4, 4]), ("y", TensorProto.FLOAT, [])
    nodes = [helper.make_node("Relu", ["x"], ["kept"]), helper.make_node("Det", ["kept"], ["y"])]
    ends = [helper.make_tensor_value_info(*square)], [helper.make_tensor_value_info(*number)]
    model = helper.make_model(
        helper.make_graph(nodes, "g", *ends), opset_imports=[helper.make_opsetid("", 22)], ir_version=10
    )
    onnx.save(model, tmp_path / "bad.onnx")
    with pytest.raises(LoweringError, match="outside the NPU: Det × 1"):
        provider.open_model(tmp_path / "bad.onnx", "SM8650")


def spoiled(artifact: Artifact, folder: Path, spoil: Callable[[onnx.ModelProto], None]) -> Artifact:
    """A copy with another decode graph, whose manifest vouches for it: only parity can tell."""
    shutil.copytree(artifact.folder, folder, dirs_exist_ok=True)
    model = onnx.load(folder / "decode.onnx", load_external_data=False)
    spoil(model)
    (folder / "decode.onnx").write_bytes(model.SerializeToString())
    return replace(artifact, folder=folder, manifest=artifact.manifest.model_copy(update={"files": seal(folder)}))


@pytest.mark.slow
def test_a_wrong_activation_scale_is_caught(make_artifact, nano, tmp_path: Path):
    def spoil(model: onnx.ModelProto) -> None:
        scale = next(t for t in model.graph.initializer if t.name == "layers.2/add_scale")
        scale.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(scale) / 8, scale.name))

    healthy = make_artifact("onnx-qnn-16a8w", "explicit", *INTEGER)
    report = prove(spoiled(healthy, tmp_path / "spoiled", spoil), nano, effort=ON_EMULATOR)
    failed = {gate.name for gate in report.gates if gate.status == "fail"}
    # not the lowering's: what the NPU is compared with is this very graph on the CPU; prefill's graph and fp32 are not
    assert failed >= {"law: chunked prefill", "law: padded prefill", "quality: mean KLD", "quality: top-1"}
    assert not any(name.startswith("lowering") for name in failed)
