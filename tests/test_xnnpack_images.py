"""A vision-language model as `.pte`, whole: proven with images, equal to transformers; a broken one is found out."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from character_tokenizer import SIZE, write_tokenizer
from image_artifacts import QUICK, Made, made_with_images
from vision_checkpoints import IMAGE_TOKEN, save_vision, vision_model

from lfm2_export import recipes, runtimes
from lfm2_export.artifact.folder import open_artifact
from lfm2_export.checkpoint import nano_vl
from lfm2_export.device.reference import batches
from lfm2_export.errors import UsageError
from lfm2_export.model.load import open_checkpoint
from lfm2_export.model.random_init import init_checkpoint
from lfm2_export.pipeline import ParityError, export
from lfm2_export.runtimes.session import Session
from lfm2_export.targets.xnnpack import vision
from lfm2_export.targets.xnnpack.table import TABLE, Delegated

ERROR = 1e-4


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    return made_with_images(tmp_path_factory.mktemp("images"), "xnnpack-fp32")


@pytest.fixture
def session(made: Made) -> Session:
    return made.session()


def test_it_is_proven_with_images(made: Made) -> None:
    manifest = open_artifact(made[1]).manifest
    assert manifest.takes_images
    assert [method.name for method in manifest.methods] == [
        "text_decoder",
        "verify",
        "token_embedding",
        "vision_encoder",
    ]
    gates = {gate.name: gate for gate in manifest.parity}
    assert {gate.status for gate in gates.values()} <= {"pass", "skipped"}
    for name in ("images: embeddings", "images: logits", "law: chunked prefill", "law: rejected = never fed"):
        assert gates[name].status == "pass"
    assert runtimes.able(manifest) == ["executorch"]


def test_an_image_that_is_fed_in_several_calls(tmp_path: Path, made: Made, session: Session) -> None:
    few = {"overrides": ["window=96", "options.max_tokens=8", "options.speculation=0"]}
    export(str(made[0]), "xnnpack-fp32", tmp_path / "few", verify=False, **few)
    artifact = open_artifact(tmp_path / "few")
    other = runtimes.find("executorch").open_session(artifact.folder, artifact.manifest)
    embeddings = np.random.default_rng(0).standard_normal((30, 32)).astype(np.float32)
    tokens = [5, 6, *[IMAGE_TOKEN] * 20, 7, *[IMAGE_TOKEN] * 10, 8]
    whole, apart = (each.prefill_with_images(tokens, embeddings) for each in (session, other))
    assert np.abs(whole - apart).max() < 1e-5 * np.abs(whole).max()


def test_what_knows_no_images_says_so(made: Made) -> None:
    artifact, checkpoint = open_artifact(made[1]), open_checkpoint(str(made[0]))
    with pytest.raises(UsageError, match="run-on-device feeds tokens"):
        batches(artifact, checkpoint, recipes.load("xnnpack-fp32"), [5, 6], 1)
    assert "it takes no images" in str(runtimes.find("native").refusal(artifact.manifest))


def test_an_image_that_is_too_large_is_refused(session: Session) -> None:
    with pytest.raises(UsageError, match=r"2 × 600 patches has 300 embeddings; this artifact takes 256"):
        session.encode(np.zeros((1200, 48), dtype=np.float32), 2, 600)


@pytest.mark.slow
@pytest.mark.parametrize(("family", "recipe"), [("lfm2_vl", "xnnpack-int8"), ("lfm3_vl", "xnnpack-fp32")])
def test_the_resident_form_through_the_stock_runner(family: str, recipe: str, tmp_path: Path) -> None:
    """The runner feeds an image in one call: a limit for text does not hold for it."""
    source = tmp_path / "model"
    save_vision(source, family, text={"vocab_size": SIZE})
    write_tokenizer(source / "tokenizer.json")
    (source / "chat_template.jinja").write_bytes((nano_vl.PATH / "chat_template.jinja").read_bytes())
    changes = {"overrides": ["window=96", "form=resident", "options.max_tokens=8", "options.speculation=0"]}
    artifact, report = export(str(source), recipe, tmp_path / "out", **QUICK | changes)
    assert report is not None
    assert report.passed
    names = [method.name for method in artifact.manifest.methods]
    assert names == ["text_decoder", "token_embedding", "vision_encoder"]
    assert artifact.manifest.methods[0].max_tokens == artifact.manifest.window
    proven = {(gate.runtime, gate.name) for gate in report.gates if gate.status == "pass"}
    assert {
        ("executorch", "images: logits"),
        ("executorch", "law: chunked prefill"),
        ("MultimodalRunner", "generation: reply = eager's"),
        ("MultimodalRunner", "law: reset"),
    } <= proven


@pytest.mark.slow
@pytest.mark.parametrize(("family", "recipe"), [("lfm2_vl", "xnnpack-int4"), ("lfm3_vl", "xnnpack-int8")])
def test_integers_in_the_decoder_and_lfm3(family: str, recipe: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(vision_model(family).config.to_json_string())
    init_checkpoint(str(tmp_path / "config.json"), tmp_path / "random")
    _, report = export(str(tmp_path / "random"), recipe, tmp_path / "out", **QUICK)
    assert report is not None
    assert report.passed
    assert report.runtimes[0].images is not None
    assert 0 < report.runtimes[0].images.embeddings_error < 1e-5
    assert report.runtimes[0].images.kld > 0
    assert report.quantization["vision"] == "int8 per channel"


def test_an_image_part_that_is_wrong_is_found_out(made: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(TABLE, "with_positions", Delegated(lambda graph, at, x, *_: x))
    with pytest.raises(ParityError, match="images: embeddings is"):
        export(str(made[0]), "xnnpack-fp32", tmp_path / "out", **QUICK)
    assert not (tmp_path / "out").exists()
    assert vision.DELEGATED.keys() <= TABLE.keys()
