"""A vision-language model as ONNX, whole: proven with images, equal to transformers, and a broken one is found out."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from command import code_of
from image_artifacts import QUICK, Made, made_with_images
from safetensors.torch import load_file, save_file
from vision_checkpoints import save_vision, vision_model

from lfm2_export import runtimes
from lfm2_export.artifact.folder import open_artifact
from lfm2_export.errors import ArtifactError, BundleError, RecipeError
from lfm2_export.evaluate.origin import checkpoint_of
from lfm2_export.model.random_init import init_checkpoint
from lfm2_export.pipeline import ParityError, export
from lfm2_export.runtimes.session import Session
from lfm2_export.targets.onnx import capabilities as onnx_capabilities
from lfm2_export.targets.onnx import vision

ERROR = 1e-4


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    return made_with_images(tmp_path_factory.mktemp("images"), "onnx-fp32")


@pytest.fixture
def session(made: Made) -> Session:
    return made.session()


def test_it_is_proven_with_images(made: Made) -> None:
    manifest = open_artifact(made[1]).manifest
    assert manifest.takes_images
    gates = {gate.name: gate for gate in manifest.parity}
    assert {gate.status for gate in gates.values()} <= {"pass", "skipped"}
    for name in ("images: embeddings", "images: logits", "law: chunked prefill", "law: rejected = never fed"):
        assert gates[name].status == "pass"
    assert (made[1] / "onnx" / "vision_encoder.onnx").is_file()
    assert runtimes.able(manifest) == ["onnxruntime"]


@pytest.mark.slow
def test_integers_in_both_parts_and_lfm3(tmp_path: Path) -> None:
    wide = vision_model("lfm3_vl", tower={"intermediate_size": 48}, projector_hidden_size=32)
    (tmp_path / "config.json").write_text(wide.config.to_json_string())
    init_checkpoint(str(tmp_path / "config.json"), tmp_path / "random")
    _, report = export(str(tmp_path / "random"), "onnx-int4", tmp_path / "out", **QUICK)
    assert report is not None
    assert report.passed
    assert report.quantization["vision"] == "int8 g32, int8 g16, int8 g128"
    assert report.runtimes[0].images is not None
    assert 0 < report.runtimes[0].images.embeddings_error < 1e-5


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint whose widths 16 divides."""
    folder = tmp_path_factory.mktemp("wide") / "vision"
    save_vision(folder, "lfm2_vl", tower={"hidden_size": 32, "intermediate_size": 48}, projector_hidden_size=32)
    return folder


@pytest.mark.parametrize(
    ("precision", "name", "word", "told"),
    [
        ("fp16", "vision_encoder_fp16", "fp16", "fp16"),
        ("int8", "vision_encoder_quantized", "q8", "int8 g16, int8 g32, int8 g128"),
    ],
)
def test_the_image_part_has_a_precision_of_its_own(
    precision: str, name: str, word: str, told: str, wide: Path, tmp_path: Path
) -> None:
    """Its lowering is as exact as in fp32, and what it costs is a row of its own."""
    changes = [*QUICK["overrides"], f"vision={precision}"]
    artifact, report = export(str(wide), "onnx-fp32", tmp_path / "out", overrides=changes, effort="quick")
    assert report is not None
    images = report.runtimes[0].images
    assert images is not None
    assert images.embeddings_error < 1e-5
    assert 1e-9 < images.kld < 1e-3
    config = json.loads((tmp_path / "out" / "config.json").read_bytes())
    assert config["transformers.js_config"]["dtype"]["vision_encoder"] == word
    assert (tmp_path / "out" / "onnx" / f"{name}.onnx").is_file()
    assert artifact.manifest.quantization["vision"] == told
    rows = {gate.name: gate.status for gate in artifact.manifest.parity}
    assert (rows["images: embeddings"], rows["quality: image part's KLD"]) == ("pass", "pass")


def test_what_its_precision_costs_is_a_gate(wide: Path, tmp_path: Path) -> None:
    changes = [*QUICK["overrides"], "vision=int8", "gates.quality.vision_kld=1e-12"]
    with pytest.raises(ParityError, match=r"image part's KLD is .*, the limit is 1e-12$"):
        export(str(wide), "onnx-fp32", tmp_path / "out", overrides=changes, effort="quick")


def test_a_precision_that_the_target_lacks_is_refused(
    wide: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        onnx_capabilities, "CAPABILITIES", replace(onnx_capabilities.CAPABILITIES, vision={"fp32": None})
    )
    with pytest.raises(RecipeError, match=r"vision: int8; the onnx target has fp32$"):
        export(str(wide), "onnx-int4", tmp_path / "out", overrides=["vision=int8"])


def test_widths_that_no_group_divides_are_refused(made: Made, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"vision: int8: .* has 24 inputs, .*; use --set vision=fp16"):
        export(str(made[0]), "onnx-int4", tmp_path / "out", **QUICK)
    assert not (tmp_path / "out").exists()


def test_an_image_part_that_is_wrong_is_found_out(made: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(vision.TABLE, "with_positions", lambda to, step, x, grid: x)
    with pytest.raises(ParityError, match="images: embeddings is"):
        export(str(made[0]), "onnx-fp32", tmp_path / "out", **QUICK)
    assert not (tmp_path / "out").exists()


def test_another_image_part_is_another_checkpoint(made: Made, tmp_path: Path) -> None:
    other = Path(shutil.copytree(made[0], tmp_path / "other"))
    artifact = open_artifact(made[1])
    assert checkpoint_of(artifact, str(other)).vision is not None
    tensors = load_file(other / "model.safetensors")
    tensors["model.multi_modal_projector.linear_1.bias"] += 1
    save_file(tensors, other / "model.safetensors")
    with pytest.raises(ArtifactError, match="digest differs"):
        checkpoint_of(artifact, str(other))


def test_no_bundle_without_a_processor_and_no_other_runtime_takes_it(
    made: Made, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ("--for", "desktop", "--allow-quick", "-o", str(tmp_path / "app.zip"))
    assert code_of("bundle", str(made[1]), *arguments) == BundleError.exit_code
    assert "has neither processor_config.json nor preprocessor_config.json" in capsys.readouterr().err
    assert code_of("parity", str(made[1]), "--checkpoint", str(made[0]), "--runtime", "genai") == 2
