"""LFM3's artifacts against the very model that each was lowered from, far past the sliding window, and who refuses."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from checkpoints import MOE
from decoders import LFM3, LFM3_SHAPES, config, random_decoder, tokens, worst
from onnx_artifacts import FP32_ERROR as ONNX_ERROR
from onnx_artifacts import HALF_ERROR, pair
from onnx_artifacts import lower as lower_onnx
from onnx_artifacts import recipe as onnx_recipe
from qnn_programs import CHUNK, WINDOW, WINDOWS, manifest, needs_qnn
from xnnpack_artifacts import FLIP_ERROR, FP32_ERROR, lower
from xnnpack_artifacts import recipe as xnnpack_recipe

from lfm2_export import recipes, targets
from lfm2_export.errors import RecipeError
from lfm2_export.quantize.apply import quantize
from lfm2_export.quantize.scheme import QuantizationRule, WeightScheme, check_rules, rules_by_path
from lfm2_export.runtimes import onnxruntime_qnn
from lfm2_export.runtimes.eager import EagerSession
from lfm2_export.runtimes.session import Session

NPU_ERROR = 0.02
CHUNKS = [1, 4, 1, 1, 13, 1, 7, 1, 3, 1]  # 33 tokens: calls shorter than the window, across it, and longer


@pytest.mark.parametrize("shape", LFM3_SHAPES.values(), ids=LFM3_SHAPES)
def test_xnnpack_equals_eager(tmp_path: Path, shape: dict[str, Any]) -> None:
    made = lower(xnnpack_recipe(), tmp_path, **shape)
    assert worst(made.session(), made.eager(), CHUNKS) < FP32_ERROR


@pytest.mark.parametrize("name", ["xnnpack-int8", "xnnpack-int4", "xnnpack-fp16"])
def test_xnnpack_quantized_equals_eager_quantized(tmp_path: Path, name: str) -> None:
    made = lower(xnnpack_recipe(name), tmp_path, **LFM3)
    assert worst(made.session(), made.eager(), CHUNKS) < FLIP_ERROR


@pytest.mark.parametrize("shape", LFM3_SHAPES.values(), ids=LFM3_SHAPES)
def test_onnx_equals_eager(tmp_path: Path, shape: dict[str, Any]) -> None:
    sessions = pair(random_decoder(**shape), tmp_path)
    assert worst(*sessions, CHUNKS) < ONNX_ERROR
    assert worst(*sessions, [2, 5, 3, 9], pad=12) < ONNX_ERROR


def test_onnx_in_fp16_equals_eager_but_for_its_rounding(tmp_path: Path) -> None:
    made_by = onnx_recipe("onnx-fp16")
    assert worst(*pair(random_decoder(**LFM3), tmp_path, made_by), CHUNKS) < HALF_ERROR


def test_fp16_throughout_wants_a_rule_for_gates(tmp_path: Path) -> None:
    made_by = onnx_recipe("onnx-q4f16")
    assert made_by.quantization[-1].match == "gate"
    without = made_by.model_copy(update={"quantization": made_by.quantization[:-1]})
    with pytest.raises(RecipeError, match=r"layers\.1\.self_attn\.g_proj: float32 \(no rule fits it\)"):
        targets.find("onnx").check(without, config(**LFM3))
    assert worst(*pair(random_decoder(**LFM3), tmp_path, made_by), CHUNKS) < HALF_ERROR


def test_the_manifest_says_what_the_state_takes(tmp_path: Path) -> None:
    method = lower(xnnpack_recipe(), tmp_path, **LFM3).lowered.methods[0]
    onnx = lower_onnx(random_decoder(**LFM3), onnx_recipe(), tmp_path).methods[0]
    sliding, convolutions = 2 * 2 * 2 * 16 * 5 * 4, 2 * 64 * 6 * 4
    assert method.state_bytes(40) == (2 * 2 * 40 * 16 * 4, sliding + convolutions)
    assert onnx.state_bytes(48) == (2 * 2 * 48 * 16 * 4, sliding + convolutions + 2 * 64 * 4)  # a column more
    assert onnx.state_bytes(96)[1] == onnx.state_bytes(48)[1]


def test_onnx_calls_states_what_transformers_js_looks_for(tmp_path: Path) -> None:
    """As 4.3.2 does (src/configs.js, src/models/modeling_utils.js, src/cache_utils.js): it begins with what numbers a
    state's shape has and zeros for names but the batch's, and reads a conversation's length off the first cache."""
    method = lower_onnx(random_decoder(**LFM3), onnx_recipe(), tmp_path).methods[0]
    begun = {
        spec.name: [1 if size == "batch_size" else size if isinstance(size, int) else 0 for size in spec.shape]
        for spec in method.inputs
        if spec.name.startswith("past_")
    }
    wanted = {
        f"past_conv.{layer}" if kind == "conv" else f"past_key_values.{layer}.{part}"
        for layer, kind in enumerate(LFM3["layer_types"])
        for part in ("key", "value")
    }
    assert begun.keys() == wanted
    assert begun["past_key_values.1.key"] == [1, 5, 2 * 16]
    assert next(shape for name, shape in begun.items() if "key_values" in name) == [1, 2, 0, 16]
    present = {name.replace("past_key_values", "present").replace("past", "present") for name in wanted}
    assert present < {spec.name for spec in method.outputs}


@pytest.mark.parametrize("name", ["onnx-int8", "onnx-int4"])
def test_onnx_quantized_equals_eager_quantized(tmp_path: Path, name: str) -> None:
    assert worst(*pair(random_decoder(**LFM3), tmp_path, onnx_recipe(name)), CHUNKS) < FLIP_ERROR
    exact = pair(random_decoder(**LFM3), tmp_path, onnx_recipe(name, float_activations=True))
    assert worst(*exact, CHUNKS) < ONNX_ERROR


def test_a_resident_form_equals_the_explicit_one_and_forgets(tmp_path: Path) -> None:
    made = lower(xnnpack_recipe(form="resident"), tmp_path, **LFM3)
    session = made.session()
    first = said(session)
    session.prefill(tokens(20, seed=9))
    assert said(session) == first
    eager = made.eager()
    assert abs(max(said(eager)) - max(first)) < 1e-4


def said(session: Session) -> list[float]:
    session.reset()
    session.prefill(tokens(11))
    return session.prefill(tokens(9, seed=2)).tolist()


@pytest.mark.parametrize("name", ["xnnpack-fp32", "onnx-fp32"])
def test_a_snapshot_across_the_window_goes_on_exactly(tmp_path: Path, name: str) -> None:
    session: Session
    if name == "onnx-fp32":
        session, _ = pair(random_decoder(**LFM3), tmp_path)
    else:
        session = lower(xnnpack_recipe(), tmp_path, **LFM3).session()
    session.prefill(tokens(9))
    saved = session.state()
    expected = session.prefill(tokens(8, seed=2)).tolist()
    session.prefill(tokens(5))
    session.restore(saved)
    assert session.prefill(tokens(8, seed=2)).tolist() == expected
    session.reset()
    assert not session.state().tensors["sliding_key.1"].any()


@needs_qnn
@pytest.mark.slow
@pytest.mark.parametrize("name", ["onnx-qnn-fp16", "onnx-qnn-16a8w"])
def test_onnx_on_the_npus_emulator_equals_its_reference(tmp_path: Path, name: str) -> None:
    made_by = recipes.load(name, [f"window={WINDOW}", f"options.prefill_chunk={CHUNK}"])
    shape = LFM3 | {"layer_types": ("conv", "sliding_attention", "full_attention")}
    decoder = quantize(random_decoder(**shape), made_by.quantization, made_by.cache)
    target = targets.find("onnx_qnn")
    target.check(made_by, decoder.config)
    lowered = target.lower(decoder, made_by, tmp_path, lambda _: None, WINDOWS if made_by.calibration else ())
    facts = lowered._asdict() | {"target": "onnx_qnn", "recipe": made_by.model_dump(mode="json")}
    made = manifest(made_by, decoder.config, **facts)
    session = onnxruntime_qnn.RUNTIME.open_session(tmp_path, made)
    reference = onnxruntime_qnn.RUNTIME.reference_session(tmp_path, made) or EagerSession(decoder, WINDOW)
    assert worst(session, reference, [3, 1, 1, 11, 1]) < NPU_ERROR
    assert worst(session, reference, [1, 5, 1], pad=CHUNK) < NPU_ERROR


@pytest.mark.parametrize("name", ["xnnpack-fp16", "qnn-fp16", "onnx-qnn-fp16"])
def test_who_cannot_write_a_step_says_so_before_a_weight_is_read(name: str) -> None:
    recipe = recipes.load(name)
    with pytest.raises(RecipeError, match=r"cannot write the steps? .*'choose_experts'"):
        targets.find(recipe.target).check(recipe, config(**MOE))


@pytest.mark.parametrize("name", ["qnn-16a8w", "qnn-16a4w", "onnx-qnn-16a8w", "onnx-qnn-16a4w", "onnx-q4f16"])
def test_recipes_without_floats_have_a_rule_for_gates_which_other_models_lack(name: str) -> None:
    recipe = recipes.load(name, ["quantization.2.weight.group=32"] if name == "qnn-16a4w" else [])
    for shape in (config(**LFM3), config()):
        check_rules(recipe.quantization, shape)
        assert None not in rules_by_path(shape, recipe.quantization).values()


def test_gates_stay_in_float_unless_a_rule_says_otherwise() -> None:
    rules = onnx_recipe("onnx-int4-small").quantization
    gates = [path for path, rule in rules_by_path(config(**LFM3), rules).items() if rule is None]
    assert gates == [f"layers.{layer}.self_attn.g_proj" for layer in (1, 2, 3)]
    own = (QuantizationRule(match="gate", weight=WeightScheme(bits=8)), *rules)
    assert None not in rules_by_path(config(**LFM3), own).values()
