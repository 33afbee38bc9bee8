"""The noise floor: rounding moves eager away from itself, and a lowering is judged by no stricter measure."""

from __future__ import annotations

from dataclasses import replace

import pytest

from lfm2_export import runtimes
from lfm2_export.model.load import open_checkpoint
from lfm2_export.parity import question_1
from lfm2_export.parity.cases import lowering_cases
from lfm2_export.parity.lowering import Distance, LoweringFigures, allowed_step
from lfm2_export.parity.noise import noise_floor
from lfm2_export.parity.passage import Passage
from lfm2_export.parity.report import RuntimeReport, judge
from lfm2_export.parity.truth import EagerTruth
from lfm2_export.quantize.apply import load_quantized
from lfm2_export.recipes import load

WINDOW = 128
GATES = load("xnnpack-int4").gates
LIMIT = GATES.lowering.max_error
QUIET = Distance(LIMIT / 10, LIMIT / 10, LIMIT / 10, 0.01, LIMIT / 20, "decode")
LOUD = replace(QUIET, max_error=LIMIT, rms_error=LIMIT / 4)


def floor_of(recipe: str, half: bool = False) -> Distance:
    nano = open_checkpoint("nano")
    eager = EagerTruth(load_quantized(nano, load(recipe).quantization, "float32"), WINDOW, half=half)
    tokens = [1 + 7 * i % 900 for i in range(48)]
    return noise_floor(eager, lowering_cases(nano.config, WINDOW, tokens, pads=False))


def test_a_case_is_measured_once_however_many_runtimes_are_asked_it(monkeypatch: pytest.MonkeyPatch) -> None:
    nano = open_checkpoint("nano")
    eager = EagerTruth(load_quantized(nano, load("xnnpack-int8").quantization, "float32"), WINDOW)
    cases, known, computed = (
        lowering_cases(nano.config, WINDOW, [1 + 7 * i % 900 for i in range(24)], pads=True),
        {},
        [],
    )
    rows = Passage.logits
    monkeypatch.setattr(Passage, "logits", lambda self, ends: computed.append(len(ends)) or rows(self, ends))
    first = noise_floor(eager, cases, known)
    assert len(computed) == 2 * len(cases)  # as it is and disturbed
    assert noise_floor(eager, cases, known) == first
    assert [eager.answer(case).logits.shape[0] for case in cases] == [len(case.chunks) for case in cases]
    assert len(computed) == 2 * len(cases)
    monkeypatch.setattr("lfm2_export.parity.truth._KEPT", 0)
    assert noise_floor(EagerTruth(eager.decoder, WINDOW), cases) == first


def test_float_arithmetic_hardly_moves_and_rounded_activations_amplify():
    still, moved = floor_of("xnnpack-fp32"), floor_of("xnnpack-int8")
    assert 0 < still.max_error < 1e-4
    assert moved.max_error > 10 * still.max_error
    assert floor_of("xnnpack-int8") == moved


def test_a_graph_in_fp16_rounds_every_value_and_so_does_its_noise():
    half, single = floor_of("onnx-fp16", half=True), floor_of("onnx-fp16")
    assert half.rms_error > 1.2 * single.rms_error
    assert half.max_error < 0.01
    assert floor_of("onnx-fp16", half=True) == half


def verdicts(figures: Distance, floor: Distance | None) -> dict[str, tuple[str, float | None]]:
    lowering = LoweringFigures(**vars(figures), top1=1.0, median_step=None, floor=floor)
    report = RuntimeReport(runtime="executorch", lowering=lowering, greedy=1.0)
    judge(report, GATES, None, random_weights=True)
    return {gate.name: (gate.status, gate.limit) for gate in report.gates}


def test_below_the_limit_the_noise_changes_nothing():
    assert verdicts(QUIET, QUIET) == verdicts(QUIET, None)
    assert verdicts(replace(QUIET, max_error=1.01 * LIMIT), QUIET)["lowering: max error"] == ("fail", LIMIT)


def test_above_the_limit_an_artifact_may_be_twice_as_far_as_eager_from_itself():
    assert verdicts(replace(LOUD, max_error=1.9 * LIMIT), LOUD)["lowering: max error"] == ("pass", 2 * LIMIT)
    assert verdicts(replace(LOUD, max_error=2.1 * LIMIT), LOUD)["lowering: max error"] == ("fail", 2 * LIMIT)


@pytest.mark.parametrize(("times", "verdict"), [(1.4, "pass"), (1.6, "fail"), (float("nan"), "fail")])
def test_where_noise_rules_the_rms_is_judged_too(times, verdict):
    assert verdicts(replace(LOUD, rms_error=times * LOUD.rms_error), LOUD)["lowering: RMS error"][0] == verdict


@pytest.mark.parametrize(("step", "noise", "verdict"), [(0.9, 0, "pass"), (1.1, 0, "fail"), (1.1, 0.6, "pass")])
def test_a_median_step_is_held_to_its_own_limit_or_to_twice_the_noise(step, noise, verdict):
    limit = GATES.lowering.median_step
    assert limit is not None
    lowering = LoweringFigures(**vars(QUIET), top1=1.0, median_step=step * limit, floor=QUIET, floor_step=noise * limit)
    report = RuntimeReport(runtime="executorch", lowering=lowering, greedy=1.0)
    judge(report, GATES, None, random_weights=True)
    (gate,) = [gate for gate in report.gates if gate.name == "lowering: median step"]
    assert gate.status == verdict


def test_a_recipe_without_a_limit_for_steps_has_that_of_all_errors():
    older = GATES.lowering.model_copy(update={"median_step": None})
    assert allowed_step(older, None) == older.max_error


@pytest.mark.parametrize(
    ("runtime", "recipe", "noise"),
    [
        ("onnxruntime", "onnx-fp16", 1.0),
        ("onnxruntime-cuda", "onnx-q4f16", 2.0),
        ("onnxruntime-cuda", "onnx-fp16", 1.0),
        ("webgpu", "onnx-fp16", 8.0),
        ("webgpu", "onnx-q4f16", 1.0),
        ("webgpu", "onnx-int4", 1.0),
    ],
)
def test_noise_is_larger_where_a_runtime_sums_that_recipes_products_in_fp16(runtime, recipe, noise):
    assert runtimes.find(runtime).noise(load(recipe).quantization) == noise


def test_larger_noise_never_makes_room_for_what_integers_cost():
    """Divergence from fp32 is noise only where no weight is an integer."""
    half, integers = load("onnx-fp16"), load("onnx-q4f16")
    assert question_1.gates_of(half, "webgpu").quality.mean_kld == 8 * half.gates.quality.mean_kld
    assert question_1.gates_of(half, "onnxruntime").quality.mean_kld == half.gates.quality.mean_kld
    assert question_1.gates_of(integers, "onnxruntime-cuda").quality == integers.gates.quality
    assert question_1.gates_of(half, "webgpu").lowering == half.gates.lowering
