"""The file that the ONNX target writes: same bytes, data beside it, its border, the oldest runtime for it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path

import onnx
import onnxruntime
import pytest
from decoders import random_decoder, worst
from onnx_artifacts import CONVOLUTIONS, FP32_ERROR, HALF, QUANTIZED, lower, model_file, pair, recipe
from packaging.version import Version

from lfm2_export.quantize.apply import quantize
from lfm2_export.targets import onnx_graph
from lfm2_export.targets.onnx.target import TARGET


@pytest.fixture
def norm_schemas() -> Iterator[None]:
    """Tell onnx's checker of the operator that onnxruntime keeps in the default domain, types inferred included.

    The others are in a domain of their own, which the checker leaves to its owner.
    """
    schema = onnx.defs.OpSchema
    name, one = "SimplifiedLayerNormalization", schema.FormalParameter
    kinds = {"axis": schema.AttrType.INT, "epsilon": schema.AttrType.FLOAT, "stash_type": schema.AttrType.INT}
    onnx.defs.register_schema(
        schema(
            name,
            "",
            1,
            inputs=[one("x", "T"), one("gamma", "T")],
            outputs=[one("y", "T")],
            type_constraints=[("T", ["tensor(float)", "tensor(float16)"], "")],
            attributes=[schema.Attribute(attribute, kind) for attribute, kind in kinds.items()],
        )
    )
    yield
    onnx.defs.deregister_schema(name, 1, "")


class TestFile:
    @pytest.mark.parametrize("name", ["onnx-fp32", *QUANTIZED])
    def test_same_bytes_twice(self, tmp_path: Path, name: str) -> None:
        digests = set()
        for number in range(2):
            folder = tmp_path / str(number)
            folder.mkdir()
            pair(random_decoder(), folder, recipe(name))
            digests.add(hashlib.sha256(model_file(folder).read_bytes()).hexdigest())
        assert len(digests) == 1

    def test_large_weights_go_to_a_file_of_their_own(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(onnx_graph, "EMBEDDED_BYTES", 1000)
        sessions = pair(random_decoder(), tmp_path, recipe("onnx-int4", float_activations=True))
        names = sorted(path.name for path in (tmp_path / "onnx").iterdir())
        assert names == ["model_q4.onnx", "model_q4.onnx_data"]
        assert worst(*sessions, [5, 1]) < FP32_ERROR

    def test_weights_past_a_browsers_buffer_are_split(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(onnx_graph, "EMBEDDED_BYTES", 1000)
        monkeypatch.setattr(onnx_graph, "CHUNK_BYTES", 200_000)
        (tmp_path / "config.json").write_text('{"model_type": "lfm2"}')
        sessions = pair(random_decoder(), tmp_path)
        data = [path for path in (tmp_path / "onnx").iterdir() if "_data" in path.name]
        config = json.loads((tmp_path / "config.json").read_bytes())
        assert config["model_type"] == "lfm2"
        count = config["transformers.js_config"]["use_external_data_format"]["model.onnx"]
        assert count > 2
        assert {path.name for path in data} == {f"model.onnx_data{f'_{n}' if n else ''}" for n in range(count)}
        assert max(path.stat().st_size for path in data) <= 200_000
        assert worst(*sessions, [5, 1]) < FP32_ERROR

    @pytest.mark.parametrize("conv", CONVOLUTIONS)
    @pytest.mark.parametrize("name", ["onnx-fp32", *QUANTIZED, *HALF])
    def test_passes_the_checker_with_full_shape_inference(
        self, tmp_path: Path, name: str, conv: str, norm_schemas: None
    ) -> None:
        chosen = recipe(name)
        pair(random_decoder(conv_bias=True), tmp_path, recipe(name, options=chosen.options | {"conv": conv}))
        onnx.checker.check_model(str(model_file(tmp_path)), full_check=True)

    def test_border_is_what_genai_and_transformers_js_look_for(self, tmp_path: Path) -> None:
        method = lower(random_decoder(), recipe(), tmp_path).methods[0]
        inputs = {spec.name: (spec.dtype, spec.shape) for spec in method.inputs}
        outputs = {spec.name: (spec.dtype, spec.shape) for spec in method.outputs}
        assert inputs["input_ids"] == ("int64", ["batch_size", "sequence_length"])
        assert inputs["attention_mask"] == ("int64", ["batch_size", "total_sequence_length"])
        assert inputs["position_ids"] == ("int64", ["batch_size", "sequence_length"])
        assert inputs["past_conv.0"] == ("float32", ["batch_size", 64, 3])
        assert outputs["present_conv.0"] == ("float32", ["batch_size", 64, "conv_columns"])  # 3, unless asked for more
        assert inputs["past_key_values.2.key"] == ("float32", ["batch_size", 2, "past_sequence_length", 16])
        assert outputs["present.4.value"] == ("float32", ["batch_size", 2, "present_sequence_length", 16])
        assert outputs["logits"] == ("float32", ["batch_size", 1, 320])
        session = onnxruntime.InferenceSession(model_file(tmp_path), providers=["CPUExecutionProvider"])
        assert [spec.name for spec in session.get_inputs()] == list(inputs)
        assert [spec.name for spec in session.get_outputs()] == list(outputs)
        optional = {spec.name for spec in session.get_overridable_initializers()}
        assert optional == {"num_logits_to_keep", "num_states_to_keep"}


@pytest.mark.parametrize(
    ("name", "options", "oldest"),
    [
        ("onnx-fp32", {"conv": "plain"}, "1.20.1"),
        ("onnx-fp16", {"conv": "plain", "precision": "float16"}, "1.20.1"),
        ("onnx-int4", {"conv": "plain"}, "1.20.1"),
        ("onnx-int8", {"conv": "plain"}, "1.22.0"),
        ("onnx-q4f16", {"conv": "plain", "precision": "float16", "fused_embedding": True}, "1.23.0"),
        ("onnx-fp32", {"conv": "fused"}, "1.25.1"),
        ("onnx-fp32", {}, "1.30.0"),
    ],
)
def test_the_oldest_runtime_is_stated(tmp_path: Path, name: str, options: dict[str, str], oldest: str) -> None:
    chosen = recipe(name, options=options)
    made = TARGET.lower(quantize(random_decoder(), chosen.quantization, chosen.cache), chosen, tmp_path, lambda _: None)
    assert made.runtime_requirement == f"onnxruntime>={oldest}"
    assert Version(onnxruntime.__version__) >= Version(oldest)
    assert onnxruntime.InferenceSession(model_file(tmp_path), providers=["CPUExecutionProvider"]).get_outputs()
