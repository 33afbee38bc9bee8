"""onnxruntime-genai over the same ONNX artifact, and what its session refuses."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime_genai as og
import pytest
from checkpoints import MOE
from decoders import random_decoder, relative, tokens
from onnx_artifacts import FP32_ERROR, WINDOW, lower, recipe
from seeing_checkpoints import noise, write_seeing

from lfm2_export.errors import ArtifactError, UsageError, WindowExceededError
from lfm2_export.pipeline import export
from lfm2_export.quantize.apply import quantize
from lfm2_export.runtimes import genai, onnxruntime
from lfm2_export.runtimes.session import Session
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


def test_its_own_pipeline_sees_pictures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By its class for LFM2-VL, from files of one size and text on; both token embeddings read one table."""
    monkeypatch.setattr(onnx_graph, "EMBEDDED_BYTES", 1000)
    folder = write_seeing(tmp_path / "seeing", "lfm2_vl")
    artifact, _ = export(str(folder), "onnx-fp32", tmp_path / "out", overrides=["window=64"], verify=False)
    tables = {path.name for path in (tmp_path / "out" / "onnx").glob("embed_tokens*")}
    assert tables == {"embed_tokens.onnx", "embed_tokens.onnx_data", "embed_tokens_with_images.onnx"}
    pictures, files = [noise(1), noise(2)], [str(tmp_path / "0.png"), str(tmp_path / "1.png")]
    for picture, file in zip(pictures, files, strict=True):
        picture.save(file)
    model = og.Model(str(tmp_path / "out"))
    given = model.create_multimodal_processor()("Hello <image> and <image>?", images=og.Images.open(*files))
    parameters = og.GeneratorParams(model)
    parameters.set_search_options(max_length=64, do_sample=False)
    generator = og.Generator(model, parameters)
    generator.set_inputs(given)
    logits = np.array(generator.get_logits()).reshape(-1, 1088)[-1]
    tokens = [int(token) for token in generator.get_sequence(0)]
    session = onnxruntime.RUNTIME.open_session(tmp_path / "out", artifact.manifest)
    seen = []
    for picture in pictures:
        rows, columns = (side // 4 for side in picture.size[::-1])
        pixels = np.asarray(picture, np.float32).reshape(rows, 4, columns, 4, 3).transpose(0, 2, 1, 3, 4)
        seen.append(session.encode(pixels.reshape(rows * columns, -1) / 127.5 - 1, rows, columns))
    expected = session.prefill_with_images(tokens, np.concatenate(seen))
    assert tokens.count(992) == len(np.concatenate(seen)) == 8
    np.testing.assert_allclose(logits, expected, atol=1e-5)
    assert np.abs(logits - session_without(session, tokens)).max() > 1e-4


def session_without(session: Session, tokens: list[int]) -> np.ndarray:
    """The logits where no image is seen."""
    session.reset()
    return session.prefill_with_images(tokens, np.zeros((8, 32), np.float32))
