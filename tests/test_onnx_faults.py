"""What is wrong with an ONNX artifact is seen, and what the target cannot write is refused before it is written."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import onnx
import pytest
from decoders import config, random_decoder, worst
from onnx_artifacts import FP32_ERROR, QUANTIZED, lower, model_file, recipe, weight_only

from lfm2_export import pipeline
from lfm2_export.errors import ArtifactError, RecipeError
from lfm2_export.quantize.apply import quantize
from lfm2_export.quantize.scheme import QuantizationRule, WeightScheme
from lfm2_export.runtimes.onnxruntime import RUNTIME
from lfm2_export.targets.onnx.table import TABLE
from lfm2_export.targets.onnx.target import TARGET


class TestFaults:
    @pytest.mark.parametrize("name", QUANTIZED)
    def test_a_flipped_weight_is_seen(self, tmp_path: Path, name: str) -> None:
        made = lower(quantize(random_decoder(), recipe(name).quantization), recipe(name), tmp_path)
        eager = weight_only(name)
        path = model_file(tmp_path)
        model = onnx.load(path)
        weight = next(t for t in model.graph.initializer if t.name.startswith("layers.1.feed_forward.w1.weight_q"))
        weight.raw_data = bytes([weight.raw_data[0] ^ 0x88]) + weight.raw_data[1:]
        onnx.save(model, path)
        broken = RUNTIME.weights_session(tmp_path, made)
        assert worst(broken, eager, [8]) > 10 * FP32_ERROR

    def test_a_broken_file_is_one_line(self, tmp_path: Path) -> None:
        made = lower(random_decoder(), recipe(), tmp_path)
        path = model_file(tmp_path)
        path.write_bytes(path.read_bytes()[:5000])
        with pytest.raises(ArtifactError, match="cannot load") as caught:
            RUNTIME.open_session(tmp_path, made)
        assert "\n" not in str(caught.value)

    @pytest.mark.parametrize(
        ("changes", "shape", "message"),
        [
            ({"form": "resident"}, {}, "form: resident; the onnx target has explicit"),
            ({"options": {"opset": 21}}, {}, "unknown options.*opset"),
            ({"options": {"fused_embedding": 1}}, {}, "false, true"),
            ({"options": {"conv": "slow"}}, {}, "channels_last, fused, plain"),
            (
                {"options": {"precision": "float16"}},
                {},
                "options.precision: float16 the onnx target has cache: float16",
            ),
            (
                {"options": {"precision": "float16"}, "cache": "float16"},
                {},
                r"embed_tokens: float32 \(no rule fits it\); with options.precision: float16 .* fp16 \(bits: 16\)",
            ),
            ({"quantization": (("linear", 16, None, None),)}, {}, "needs options.precision: float16"),
            ({}, {"head_dim": 8}, "multiple of 16"),
            ({"cache": "bfloat16"}, {}, "cache: bfloat16; .* has cache: float32 or float16"),
            ({"quantization": (("linear", 4, 32, "int8-token"),)}, {}, "int8-block"),
            (
                {"quantization": (("embedding", 4, 32, "int8-block"),)},
                {},
                "embed_tokens: .*int8-block; .* for an embedding: int4 in groups [^:]*$",
            ),
            ({"quantization": (("linear", 8, None, None),)}, {}, "int8 in groups of 16, 32, 64, …"),
            ({"quantization": (("conv", 8, 8, None),)}, {}, "int8 in groups of 16, 32, 64, …"),
            (
                {"quantization": (("conv", 8, 48, None),)},
                {"hidden_size": 96},
                "int8 in groups of 48, .* int8 in groups of 16, 32, 64, …",
            ),
        ],
        ids=lambda value: str(value) if isinstance(value, str) else "",
    )
    def test_impossible_recipes_are_refused(self, changes: dict[str, Any], shape: dict[str, Any], message: str) -> None:
        if "quantization" in changes:
            rules = (
                QuantizationRule(match=m, weight=WeightScheme(bits=b, group=g), activation=a)
                for m, b, g, a in changes["quantization"]
            )
            changes = changes | {"quantization": tuple(rules)}
        with pytest.raises(RecipeError, match=message):
            TARGET.check(recipe(**changes), config(**shape))

    @pytest.mark.parametrize("kind", ["short_conv", "rotary_attention", "silu"])
    def test_a_step_without_an_entry_is_refused_by_name_before_a_weight_is_read(
        self, kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.delitem(TABLE, kind)
        monkeypatch.setattr(pipeline, "load_quantized", pytest.fail)
        with pytest.raises(RecipeError, match=rf"the onnx target cannot write the step '{kind}' \(at layers\.\d"):
            pipeline.export("nano", "onnx-fp32", tmp_path / "out")
