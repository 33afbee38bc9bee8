"""Mixtures of experts: what onnxruntime makes of them, what recipes and `tune` see, what calibration shows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from checkpoints import MOE
from decoders import config, random_decoder, relative, tokens, worst
from onnx_artifacts import FLIP_ERROR, FP32_ERROR, WINDOW, lower, pair, recipe, step_errors
from safetensors.torch import load_file, save_file

from lfm2_export import recipes, targets
from lfm2_export.bench.bytes_read import weight_bytes
from lfm2_export.checkpoint.config import to_dict
from lfm2_export.checkpoint.source import Checkpoint
from lfm2_export.errors import RecipeError
from lfm2_export.graph.matrices import matrices
from lfm2_export.model.decoder import Decoder
from lfm2_export.model.load import load_decoder, open_checkpoint
from lfm2_export.model.random_init import init_checkpoint
from lfm2_export.quantize.apply import BlockActivationLinear, load_quantized, quantize, quantized_weight
from lfm2_export.quantize.calibrated import load_calibrated
from lfm2_export.quantize.coverage import uncovered
from lfm2_export.quantize.record import load_recorded
from lfm2_export.quantize.scheme import QuantizationRule, WeightScheme, describe, rules_by_path
from lfm2_export.quantize.size import matrix_bytes
from lfm2_export.quantize.unpack import unpack, without_rounding
from lfm2_export.runtimes.eager import EagerSession
from lfm2_export.runtimes.onnxruntime import RUNTIME
from lfm2_export.targets.onnx.target import TARGET
from lfm2_export.tune.choices import units

SMALL: dict[str, Any] = MOE | {"moe_intermediate_size": 96, "num_experts": 6}
SHAPES: dict[str, dict[str, Any]] = {
    "plain": SMALL,
    "no bias, sums as they are": SMALL | {"use_expert_bias": False, "norm_topk_prob": False},
    "all of them": SMALL | {"num_experts_per_tok": 6, "num_dense_layers": 0},
    "one of two, scaled": SMALL | {"num_experts": 2, "num_experts_per_tok": 1, "routed_scaling_factor": 1.7},
}
QUANTIZED = ["onnx-int8", "onnx-int4", "onnx-int4-mixed"]
EIGHT = WeightScheme(bits=8, group=32)


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_onnx_equals_eager(tmp_path: Path, shape: dict[str, Any]) -> None:
    sessions = pair(random_decoder(**shape), tmp_path)
    assert worst(*sessions, [1, 4, 1, 13, 1, 7]) < FP32_ERROR
    assert worst(*sessions, [2, 5, 3, 9], pad=12) < FP32_ERROR


@pytest.mark.parametrize("name", QUANTIZED)
def test_onnx_rounds_what_experts_are_given_as_eager_does(tmp_path: Path, name: str) -> None:
    errors = step_errors(*pair(random_decoder(**SMALL), tmp_path, recipe(name)))
    assert np.median(errors) < FP32_ERROR
    assert max(errors) < FLIP_ERROR


@pytest.mark.parametrize("name", QUANTIZED)
def test_the_shipped_integers_are_exact_but_for_rounding(tmp_path: Path, name: str) -> None:
    decoder = quantize(random_decoder(**SMALL), recipe(name).quantization)
    session = RUNTIME.weights_session(tmp_path, lower(decoder, recipe(name), tmp_path))
    plain = EagerSession(without_rounding(unpack(decoder)), WINDOW)
    assert worst(session, plain, [1, 2, 9, 1, 4]) < FP32_ERROR
    rounding, _ = pair(random_decoder(**SMALL), tmp_path, recipe(name))
    assert (
        worst(rounding, plain, [1, 2, 9, 1, 4]) > 10 * FP32_ERROR
    )  # what makes experts' kernels take fp32 is off again


@pytest.mark.parametrize("name", ["onnx-fp32", *QUANTIZED])
def test_an_expert_that_nobody_chose_is_not_computed(tmp_path: Path, name: str) -> None:
    """Its weights are no numbers: a zero times them would show."""
    decoder = quantize(avoiding(random_decoder(**SMALL), 3), recipe(name).quantization)
    for layer in range(1, 6):
        for part in decoder.get_submodule(f"layers.{layer}.feed_forward.experts.3").children():
            weight = part.weight
            (weight.scale if quantized_weight(part) else weight.data).fill_(torch.nan)
    session = RUNTIME.open_session(tmp_path, lower(decoder, recipe(name), tmp_path))
    for size in (1, 9, 1):
        assert np.isfinite(session.prefill(tokens(size))).all()


def avoiding(decoder: Decoder, expert: int) -> Decoder:
    """The same with a bias in every layer by which that expert is never chosen."""
    for name, parameter in decoder.named_parameters():
        if name.endswith("expert_bias"):
            parameter.data[expert] = -100.0
    return decoder


def test_experts_have_rules_of_their_own_and_else_those_of_other_matrices(tmp_path: Path) -> None:
    made_by = recipe("onnx-int4")
    assert describe(made_by.quantization, config(**SMALL))["expert"] == "int4 g32 + int8-block"
    assert describe(made_by.quantization, config(**SMALL))["gate"] == "fp32"
    own = QuantizationRule(match="expert", weight=EIGHT, activation="int8-block")
    mixed = made_by.model_copy(update={"quantization": (own, *made_by.quantization)})
    found = rules_by_path(config(**SMALL), mixed.quantization)
    assert {path for path, rule in found.items() if rule == own} == {
        path for path, kind, _ in matrices(config(**SMALL)) if kind == "expert"
    }
    session, eager = pair(random_decoder(**SMALL), tmp_path, mixed)
    assert relative(session.decode(5), eager.decode(5)) < FLIP_ERROR


@pytest.mark.parametrize(
    ("rules", "message"),
    [
        (
            [QuantizationRule(match="*.experts.2.w1", weight=EIGHT, activation="int8-block")],
            r"layers\.1\.feed_forward\.experts\.2\.w1: int8 in groups of 32.* one operator for all experts of a layer, "
            r"and layers\.1\.feed_forward\.experts\.0\.w1 is int4 in groups of 32",
        ),
        ([QuantizationRule(match="expert", weight=EIGHT)], "the onnx target has for an expert: int8 .*int8-block"),
        ([QuantizationRule(match="expert", weight=WeightScheme(bits=16))], "for an expert: float32; or int8"),
    ],
)
def test_what_the_operator_cannot_hold_is_refused(rules: list[QuantizationRule], message: str) -> None:
    made_by = recipe("onnx-int4")
    wanted = made_by.model_copy(update={"quantization": (*rules, *made_by.quantization)})
    with pytest.raises(RecipeError, match=message):
        targets.find("onnx").check(wanted, config(**SMALL))


@pytest.mark.parametrize("name", ["onnx-fp16", "onnx-q4f16"])
def test_fp16_has_no_experts_yet(name: str) -> None:
    gate = QuantizationRule(match="gate", weight=WeightScheme(bits=16), activation="float16")
    made_by = recipe(name)
    own = made_by.model_copy(update={"quantization": (gate, *made_by.quantization)})
    with pytest.raises(RecipeError, match="has for an expert: nothing"):
        targets.find("onnx").check(own, config(**SMALL))


def test_the_oldest_runtime_is_stated(tmp_path: Path) -> None:
    made = TARGET.lower(random_decoder(**SMALL), recipe(), tmp_path, lambda _: None)
    assert made.runtime_requirement == "onnxruntime>=1.31.1"


def test_who_refuses_experts_says_why() -> None:
    with pytest.raises(RecipeError, match=r"cannot write the steps? .*'experts'.*; experts: .*every expert"):
        targets.find("xnnpack").check(recipes.load("xnnpack-fp32"), config(**SMALL))


def test_a_step_reads_the_chosen_share_of_the_experts() -> None:
    made_by, shape = recipe("onnx-int4"), config(**SMALL)
    manifest = Recorded(made_by.model_dump(mode="json"), to_dict(shape))
    by_path = rules_by_path(shape, made_by.quantization)
    stored = {path: (kind, matrix_bytes(shape_, by_path[path])) for path, kind, shape_ in matrices(shape)}
    others = sum(size for kind, size in stored.values() if kind not in ("expert", "embedding"))
    experts = sum(size for kind, size in stored.values() if kind == "expert")
    assert weight_bytes(manifest) == others + experts * 2 // 6  # type: ignore[arg-type]


class Recorded:
    """As much of a manifest as is counted from."""

    def __init__(self, recipe: dict[str, Any], shape: dict[str, Any]) -> None:
        self.recipe = recipe
        self.source = type("Source", (), {"config": shape})


def test_tune_decides_a_layers_experts_at_once() -> None:
    found = units(config(**SMALL), "onnx")
    mixtures = [unit for unit in found if "experts" in unit.paths[0]]
    assert [len(unit.paths) for unit in mixtures] == 5 * [18]
    option = next(each for each in mixtures[0].options if each.bits == 4)
    assert 3 * mixtures[0].read(option) == mixtures[0].stored(option) == 18 * (96 * 64 // 2 + 96 * 2 * 4)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    """Random weights; in no layer is expert 3 ever chosen."""
    folder = tmp_path_factory.mktemp("moe") / "checkpoint"
    init_checkpoint(config(**SMALL), folder)
    file = folder / "model.safetensors"
    stored = load_file(file)
    for name, tensor in stored.items():
        if name.endswith("expert_bias"):
            tensor[3] = -100.0
    save_file(stored, file, {"format": "pt"})
    return open_checkpoint(str(folder))


@pytest.mark.parametrize("method", ["gptq", "awq-gptq"])
def test_calibration_counts_what_each_expert_saw(checkpoint: Checkpoint, method: Any) -> None:
    rules, windows = recipe("onnx-int4").quantization, tuple(tuple(tokens(24 + n, n)) for n in range(6))
    said: list[str] = []
    decoder, record = load_calibrated(checkpoint, rules, "float32", method, windows, said.append)
    for layer in range(1, 6):
        counts = record[f"layers.{layer}.feed_forward.experts.tokens"]
        assert counts.sum() == 2 * sum(map(len, windows))  # padding chooses nobody
        assert counts[3] == 0
    few = uncovered(record, checkpoint.config)
    assert few.startswith("layers.1.feed_forward.experts.3 (0 tokens), ")
    assert few.count("tokens") == 5
    assert any("rounded by mse: layers.1.feed_forward.experts.3 (0 tokens)" in line for line in said)
    by_mse, nearest = (load_quantized(checkpoint, rules, "float32", how) for how in ("mse", "nearest"))
    path = "layers.4.feed_forward.experts.{}.w2"
    assert same(decoder, by_mse, path.format(3))
    assert not same(decoder, nearest, path.format(3))
    assert not same(decoder, by_mse, path.format(2))
    again = load_recorded(checkpoint, rules, "float32", record)
    assert all(same(decoder, again, path) for path, kind, _ in matrices(checkpoint.config) if kind != "gate")
    assert isinstance(decoder.get_submodule(path.format(3)), BlockActivationLinear)


def same(one: Decoder, other: Decoder, path: str) -> bool:
    found, expected = (quantized_weight(each.get_submodule(path)) for each in (one, other))
    assert found is not None
    assert expected is not None
    return torch.equal(found.values, expected.values) and torch.equal(found.scales, expected.scales)


def test_experts_rounded_for_their_tokens_err_less_on_them(checkpoint: Checkpoint) -> None:
    windows = tuple(tuple(tokens(40, n)) for n in range(12))
    only = (QuantizationRule(match="expert", weight=WeightScheme(bits=4, group=32)),)
    exact = EagerSession(load_decoder(checkpoint), WINDOW).score(tokens(40, 3))
    gptq, _ = load_calibrated(checkpoint, only, "float32", "gptq", windows)
    errors = [
        float(np.abs(EagerSession(each, WINDOW).score(tokens(40, 3)) - exact).mean())
        for each in (gptq, load_quantized(checkpoint, only))
    ]
    assert errors[0] < 0.9 * errors[1]
