"""onnxruntime-genai over the same ONNX artifact, and what its session refuses."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from checkpoints import MOE
from decoders import random_decoder, relative, tokens
from onnx_artifacts import FP32_ERROR, WINDOW, lower, recipe

from lfm2_export.errors import ArtifactError, UsageError, WindowExceededError
from lfm2_export.quantize.apply import quantize
from lfm2_export.runtimes import genai, onnxruntime
from lfm2_export.targets import onnx_graph

MIXTURE: dict[str, Any] = MOE | {"moe_intermediate_size": 96}
SHAPES: list[dict[str, Any]] = [
    {},
    {"conv_L_cache": 5},
    {"layer_types": ("conv", "conv")},
    {"layer_types": ("full_attention", "conv")},
    MIXTURE,
]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_equals_onnxruntime_for_any_split_and_again_after_reset(tmp_path: Path, shape: dict[str, Any]) -> None:
    manifest = lower(random_decoder(**shape), recipe(), tmp_path)
    ours, plain = genai.RUNTIME.open_session(tmp_path, manifest), onnxruntime.RUNTIME.open_session(tmp_path, manifest)
    for _ in range(2):
        for chunk in (tokens(1), tokens(2), tokens(9), [5], tokens(4)):
            assert relative(ours.prefill(chunk), plain.prefill(chunk)) < FP32_ERROR
        assert ours.position == plain.position
        ours.reset()
        plain.reset()
        assert ours.position == 0


@pytest.mark.parametrize("shape", [{}, MIXTURE], ids=["dense", "mixture"])
def test_quantized_equals_onnxruntime(tmp_path: Path, shape: dict[str, Any]) -> None:
    made_by = recipe("onnx-int4")
    manifest = lower(quantize(random_decoder(**shape), made_by.quantization), made_by, tmp_path)
    ours, plain = genai.RUNTIME.open_session(tmp_path, manifest), onnxruntime.RUNTIME.open_session(tmp_path, manifest)
    np.testing.assert_allclose(ours.prefill(tokens(9)), plain.prefill(tokens(9)), atol=FP32_ERROR)


@pytest.mark.parametrize("embedded", [1 << 30, 0], ids=["weights inside", "weights outside"])
def test_what_reads_long_text_says_what_single_steps_say(tmp_path: Path, monkeypatch, embedded: int) -> None:
    monkeypatch.setattr(onnx_graph, "EMBEDDED_BYTES", embedded)
    manifest = lower(random_decoder(), recipe(), tmp_path)
    steps = genai.RUNTIME.open_session(tmp_path, manifest)
    reader = genai.RUNTIME.reading_session(tmp_path, manifest)
    for _ in range(2):  # a second conversation knows nothing of the first
        for count in (2 * genai.RUNTIME.reads + 3, 1, 5):
            text = tokens(count)
            assert relative(reader.read(text), np.stack([steps.decode(token) for token in text])) < FP32_ERROR
        assert reader.position == steps.position
        steps.reset()
        reader.reset()


def test_runs_to_the_window_and_refuses_what_it_cannot(tmp_path: Path) -> None:
    session = genai.RUNTIME.open_session(tmp_path, lower(random_decoder(), recipe(), tmp_path))
    session.prefill(tokens(WINDOW - 1))
    session.decode(3)
    with pytest.raises(WindowExceededError):
        session.decode(3)
    assert session.position == WINDOW
    session.reset()
    for chunk in ([], [320], [-1]):
        with pytest.raises(UsageError):
            session.prefill(chunk)
    with pytest.raises(UsageError, match="padded"):
        session.prefill([1], pad_to=8)
    with pytest.raises(UsageError, match="onnxruntime"):
        session.state()
    assert session.position == 0


Edit = Callable[[dict[str, Any]], object]
HOSTILE: dict[str, Edit] = {
    "a library to load": lambda c: c["model"]["decoder"]["session_options"].update(custom_ops_library="evil.so"),
    "a provider": lambda c: c["model"]["decoder"]["session_options"]["provider_options"].append({"evil": {}}),
    "another model": lambda c: c["model"]["decoder"].update(filename="../elsewhere.onnx"),
    "a second session": lambda c: c["model"].update(vision={"session_options": {"custom_ops_library": "evil.so"}}),
    "a section of its own": lambda c: c.update(engine={}),
    "no vocabulary": lambda c: c["model"].pop("vocab_size"),
    "no decoder": lambda c: c["model"].update(decoder=[]),
}


@pytest.mark.parametrize("edit", HOSTILE.values(), ids=HOSTILE.keys())
def test_a_config_that_asks_for_more_is_refused(tmp_path: Path, edit: Edit) -> None:
    manifest = lower(random_decoder(), recipe(), tmp_path)
    path = tmp_path / "genai_config.json"
    config = json.loads(path.read_bytes())
    edit(config)
    path.write_text(json.dumps(config))
    with pytest.raises(ArtifactError, match=r"genai_config\.json") as caught:
        genai.RUNTIME.open_session(tmp_path, manifest)
    assert "\n" not in str(caught.value)


def test_a_broken_model_is_one_line(tmp_path: Path) -> None:
    manifest = lower(random_decoder(), recipe(), tmp_path)
    path = tmp_path / manifest.methods[0].file
    path.write_bytes(path.read_bytes()[:5000])
    with pytest.raises(ArtifactError, match="cannot load") as caught:
        genai.RUNTIME.open_session(tmp_path, manifest)
    assert "\n" not in str(caught.value)
