"""What the XNNPACK target has no kernel for is refused before it is lowered, and a truncated file when it is opened."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from decoders import config
from xnnpack_artifacts import Make, recipe

from lfm2_export.errors import ArtifactError, RecipeError
from lfm2_export.quantize.scheme import QuantizationRule, WeightScheme
from lfm2_export.runtimes.executorch import RUNTIME
from lfm2_export.targets.xnnpack import methods
from lfm2_export.targets.xnnpack import target as xnnpack


class TestRefusals:
    def test_another_runtimes_activations(self) -> None:
        rule = QuantizationRule(match="linear", weight=WeightScheme(bits=4, group=32), activation="int8-block")
        with pytest.raises(RecipeError, match="int8-block"):
            xnnpack.TARGET.check(recipe(quantization=(rule,)), config())

    def test_integer_weights_with_float_activations(self) -> None:
        rule = QuantizationRule(match="head", weight=WeightScheme(bits=4, group=32, scale="bfloat16"))
        with pytest.raises(RecipeError, match="int8-token"):
            xnnpack.TARGET.check(recipe(quantization=(rule,)), config())

    def test_activations_of_an_embedding(self) -> None:
        rule = QuantizationRule(match="embedding", weight=WeightScheme(bits=8), activation="int8-token")
        with pytest.raises(RecipeError, match="embedding"):
            xnnpack.TARGET.check(recipe(quantization=(rule,)), config())

    @pytest.mark.parametrize("kind", ["linear", "conv", "head"])
    @pytest.mark.parametrize(
        ("weight", "message"),
        [
            (WeightScheme(bits=8, group=32), "has for a product: int8 per row"),
            (WeightScheme(bits=4, group=16, scale="bfloat16"), "in groups of a multiple of 32"),
            (WeightScheme(bits=4, group=32), "scale: bfloat16"),
            (WeightScheme(bits=4), "in groups of a multiple of 32"),
        ],
        ids=["int8 in groups", "int4 in small groups", "int4 with fp32 scales", "int4 per channel"],
    )
    def test_weights_that_xnnpack_has_no_kernel_for(self, kind: str, weight: WeightScheme, message: str) -> None:
        rule = QuantizationRule(match=kind, weight=weight, activation="int8-token")
        with pytest.raises(RecipeError, match=message):
            xnnpack.TARGET.check(recipe(quantization=(rule,)), config())

    @pytest.mark.parametrize("weight", [WeightScheme(bits=8, group=32), WeightScheme(bits=4, group=16)], ids=str)
    def test_an_embedding_may_have_any_group(self, weight: WeightScheme) -> None:
        xnnpack.TARGET.check(recipe(quantization=(QuantizationRule(match="embedding", weight=weight),)), config())

    @pytest.mark.parametrize("options", [{"speed": 1}, {"max_tokens": 0}, {"max_tokens": True}, {"max_tokens": "9"}])
    def test_options(self, options: dict[str, Any]) -> None:
        with pytest.raises(RecipeError):
            xnnpack.TARGET.check(recipe(options=options), config())

    @pytest.mark.parametrize("kept", [0, 10, 2000, -1])
    def test_truncated_file(self, make: Make, tmp_path: Path, kept: int) -> None:
        made = make()
        (tmp_path / methods.FILE).write_bytes((made.folder / methods.FILE).read_bytes()[:kept])
        with pytest.raises(ArtifactError, match=methods.FILE):
            RUNTIME.open_session(tmp_path, made.manifest())
