"""A fault planted in one weight of what is lowered: the trace names its layer and operation."""

from __future__ import annotations

import json
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import cache

import pytest
import torch
from artifacts import need_qnn

from lfm2_export import targets
from lfm2_export.model.load import open_checkpoint
from lfm2_export.model.random_init import init_checkpoint
from lfm2_export.parity.divergence import find_divergence
from lfm2_export.pipeline import export

TARGETS = {
    "xnnpack": ("xnnpack-int8", "nano"),
    "xnnpack, LFM3": ("xnnpack-int8", "nano-lfm3"),
    "onnx": ("onnx-int8", "nano"),
    "onnx-int4": ("onnx-int4", "nano"),
}
FAULTS = [
    ("xnnpack", "layers.3.conv.kernel", "gated convolution"),
    ("xnnpack", "layers.4.self_attn.out_proj.weight", "self_attn.out_proj"),
    ("xnnpack, LFM3", "layers.1.self_attn.g_proj.weight", "self_attn.g_proj"),
    ("onnx", "layers.3.feed_forward.w3.weight", "feed_forward.w3"),
    ("onnx", "layers.2.self_attn.k_layernorm.weight", "self_attn.k_layernorm"),
    ("onnx", "layers.5.ffn_norm.weight", "ffn_norm"),
    ("onnx-int4", "layers.3.feed_forward.w3.weight", "feed_forward.w3"),
]


@contextmanager
def one_weight_changed(decoder, path):
    """The largest weight with its sign turned, while the block lasts: among the integers where it is quantized."""
    parameter = decoder.get_parameter(path)
    values = getattr(parameter, "qdata", parameter).detach()
    flat = values.view(-1)
    where = int(flat.float().argmax())
    kept = flat[where].clone()
    flat[where] = -kept
    try:
        yield
    finally:
        flat[where] = kept


@contextmanager
def fault_in(target, method, *paths):
    """A target whose `method` lowers with one weight changed in each of these; None stands for no fault."""
    genuine = getattr(target, method)

    def faulty(decoder, *rest):
        with torch.no_grad(), ExitStack() as faults:
            for path in filter(None, paths):
                faults.enter_context(one_weight_changed(decoder, path))
            return genuine(decoder, *rest)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(target, method, faulty)
        yield


@pytest.mark.parametrize(("target", "path", "operation"), FAULTS, ids=[fault[1] for fault in FAULTS])
def test_the_layer_with_the_fault_is_named(target, path, operation, make_artifact):
    recipe, source = TARGETS[target]
    artifact = make_artifact(recipe, "explicit", source=source)
    with fault_in(targets.find(artifact.manifest.target), "lower_with_probes", path):
        trace = find_divergence(artifact, open_checkpoint(source))
    found = trace.points[trace.first]
    assert (found.layer, found.operation) == (int(path.split(".")[1]), operation)
    assert trace.verdict.startswith(f"layer {found.layer}, {operation}: error ")
    sound = [point.own for number, point in enumerate(trace.points) if number != trace.first]
    assert max(sound) <= trace.tolerance  # what comes after inherits the damage and adds none of its own
    assert all(point.accumulated < 0.05 for point in trace.points[: trace.first])


@pytest.mark.parametrize("recipe", ["onnx-int8", "onnx-fp16", "onnx-q4f16"])
def test_a_sound_lowering_has_no_divergence(recipe, make_artifact, nano):
    trace = find_divergence(make_artifact(recipe, "explicit"), nano)
    assert trace.first is None
    assert trace.verdict.startswith("none: each of 85 points is within")
    assert {point.layer for point in trace.points} == {None, *range(nano.config.num_hidden_layers)}


def test_a_target_that_cannot_show_its_inside_is_traced_by_the_state(make_artifact, nano, monkeypatch):
    from lfm2_export.parity import divergence

    artifact = make_artifact("onnx-int8", "explicit")
    monkeypatch.setattr(targets.find("onnx"), "lower_with_probes", lambda *_: None)
    assert find_divergence(artifact, nano).first is None
    sound = divergence.quantized_model

    def faulty(given, checkpoint):
        decoder = sound(given, checkpoint)
        decoder.block(3).operator_norm.weight.mul_(2)
        return decoder

    monkeypatch.setattr(divergence, "quantized_model", faulty)
    with torch.no_grad():
        trace = find_divergence(artifact, nano)
    assert trace.points[trace.first].point == "conv_state.3"
    assert "cannot show its network's inside" in trace.method


@pytest.fixture(scope="module")
def small(nano, tmp_path_factory):
    """A layer of each kind, half as wide as nano, with random weights: the NPU's compiler takes its time."""
    folder = tmp_path_factory.mktemp("small") / "checkpoint"
    shape = {"hidden_size": 64, "intermediate_size": 160, "head_dim": 16, "layer_types": ("conv", "full_attention")}
    init_checkpoint(replace(nano.config, **shape), folder)
    (folder / "tokens.json").write_text(
        json.dumps([[(7 * at + start) % 1000 for at in range(24)] for start in range(4)])
    )
    return open_checkpoint(str(folder))


@pytest.fixture(scope="module")
def made_for_the_npu(small, tmp_path_factory):
    """(recipe, weight with a fault in the program) → an unproven artifact of the small model."""
    need_qnn()

    @cache
    def make(recipe, path=None):
        changes = ["window=48", "options.prefill_chunk=8", "options.weight_sharing=false"]
        if recipe != "qnn-fp16":
            changes += [f"calibration={{source: tokens, file: {small.folder / 'tokens.json'}, tokens: 24}}"]
        output = tmp_path_factory.mktemp("npu") / recipe
        with fault_in(targets.find("qnn"), "lower", path):
            return export(str(small.folder), recipe, output, overrides=changes, verify=False)[0]

    return make


@pytest.mark.slow
@pytest.mark.parametrize(
    ("path", "point"),
    [
        (None, None),
        ("layers.0.feed_forward.w2.weight", "key.1"),  # behind its layer's own state: it shows in the next one's
    ],
    ids=["sound", "fault"],
)
def test_without_probes_a_fault_in_an_npu_program_shows_in_a_state(path, point, made_for_the_npu, small, monkeypatch):
    artifact = made_for_the_npu("qnn-16a8w", path)
    monkeypatch.setattr(targets.find("qnn"), "lower_with_probes", lambda *_: None)
    trace = find_divergence(artifact, small)
    assert trace.runtime == "qnn-emulator"
    assert len(trace.points) == 3  # a conv state, keys and values
    assert (None if trace.first is None else trace.points[trace.first].point) == point


@pytest.mark.slow
@pytest.mark.parametrize(
    ("recipe", "faults"),
    [
        ("qnn-16a8w", []),
        ("qnn-16a8w", ["layers.0.feed_forward.w2", "layers.1.self_attn.k_layernorm"]),
        ("qnn-fp16", ["layers.1.ffn_norm"]),
    ],
    ids=["16a8w-sound", "16a8w", "fp16"],
)
def test_the_operations_with_faults_are_found_in_an_npu_program(recipe, faults, made_for_the_npu, small):
    artifact = made_for_the_npu(recipe)
    with fault_in(targets.find("qnn"), "lower_with_probes", *(f"{path}.weight" for path in faults)):
        trace = find_divergence(artifact, small)
    assert trace.runtime == "qnn-emulator"
    assert len(trace.points) == 31  # every output, and the inputs that no other module gave out
    expected = [f"{path}:out" for path in faults]
    beyond = [point.point for point in trace.points if point.own > trace.tolerance]
    assert ([] if trace.first is None else [trace.points[trace.first].point]) == expected[:1]
    assert set(beyond) >= set(expected)
    if recipe == "qnn-fp16":  # with ranges, what lies behind a fault may leave those that were calibrated without it
        assert beyond == expected


@pytest.mark.slow
@pytest.mark.parametrize(
    ("recipe", "path", "found"),
    [
        ("onnx-qnn-16a8w", None, None),
        ("onnx-qnn-16a8w", "layers.2.self_attn.k_layernorm.weight", (2, "self_attn.k_layernorm")),
        ("onnx-qnn-16a8w", "layers.3.feed_forward.w3.weight", (3, "feed_forward.w3")),
        ("onnx-qnn-fp16", None, None),
        ("onnx-qnn-fp16", "layers.5.ffn_norm.weight", (5, "ffn_norm")),
    ],
)
def test_the_operation_with_the_fault_is_named_on_the_emulator(recipe, path, found, make_artifact, nano):
    pytest.importorskip("onnxruntime_qnn", reason="QNN is not installed: pip install 'lfm2-export[qnn]'")
    changes = ["window=96", "options.prefill_chunk=8"]  # shorter than the first call, whose rest is decoded
    changes += ["calibration.tokens=96"] if recipe != "onnx-qnn-fp16" else []  # on half of it attention is cut off
    artifact = make_artifact(recipe, "explicit", *changes)
    with fault_in(targets.find("onnx_qnn"), "lower_with_probes", path):
        trace = find_divergence(artifact, nano)
    assert trace.runtime == "onnxruntime-qnn"
    assert len(trace.points) == 85  # as on the CPU: every output, and the inputs that no other module gave out
    first = None if trace.first is None else trace.points[trace.first]
    assert (None if first is None else (first.layer, first.operation)) == found
