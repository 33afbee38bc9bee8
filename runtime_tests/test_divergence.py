"""A fault planted in one weight of what is lowered: the trace names its layer and operation."""

from __future__ import annotations

from contextlib import contextmanager

import pytest
import torch

from lfm2_export import targets
from lfm2_export.parity.divergence import find_divergence

TARGETS = {
    "xnnpack": ("xnnpack-int8", "explicit"),
    "onnx": ("onnx-int8", "explicit"),
    "onnx-int4": ("onnx-int4", "explicit"),
}
FAULTS = [
    ("xnnpack", "layers.3.conv.kernel", "gated convolution"),
    ("xnnpack", "layers.4.self_attn.out_proj.weight", "self_attn.out_proj"),
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


@pytest.mark.parametrize(("target", "path", "operation"), FAULTS, ids=[fault[1] for fault in FAULTS])
def test_the_layer_with_the_fault_is_named(target, path, operation, make_artifact, nano, monkeypatch):
    module = targets.find(target.partition("-")[0])
    genuine = module.lower_tapped

    def faulty(decoder, recipe, folder, stage):
        with torch.no_grad(), one_weight_changed(decoder, path):
            return genuine(decoder, recipe, folder, stage)

    monkeypatch.setattr(module, "lower_tapped", faulty)
    trace = find_divergence(make_artifact(*TARGETS[target]), nano)
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
    monkeypatch.setattr(targets, "tapping", lambda name: None)
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
