"""Bundles of artifacts that take images: the processor comes along, and cases with pixels, which another can replay."""

from __future__ import annotations

import base64
import io
import json
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from small_bundles import archived, described

from lfm2_export import runtimes
from lfm2_export.artifact.folder import Artifact
from lfm2_export.artifact.manifest import FileEntry
from lfm2_export.bundle.archive import measure
from lfm2_export.bundle.pack import bundle
from lfm2_export.bundle.verify import verify
from lfm2_export.checkpoint.vision_config import read_model_config
from lfm2_export.errors import BundleError, UsageError
from lfm2_export.images.processor import load_processor
from lfm2_export.pipeline import export

Contents = dict[str, bytes]


@pytest.fixture(scope="module", params=["onnx", "pte"])
def artifact(
    request: pytest.FixtureRequest, seeing_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory
) -> Artifact:
    if request.param == "onnx":
        found: Artifact = request.getfixturevalue("seeing_artifact")
        return found
    output = tmp_path_factory.mktemp("seeing") / "pte"
    return export(str(seeing_checkpoint), "xnnpack-fp32", output, overrides=["window=128"], verify=False)[0]


@pytest.fixture(scope="module")
def packed(artifact: Artifact, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return bundle(artifact, "desktop", tmp_path_factory.mktemp("packed") / "app.zip").path


@pytest.fixture
def contents(packed: Path) -> Contents:
    with zipfile.ZipFile(packed) as archive:
        return {name: archive.read(name) for name in archive.namelist() if name != "bundle.json"}


def golden(contents: Contents) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(contents["golden.json"])
    return found


def test_it_holds_the_processor_and_cases_with_pictures(packed: Path, contents: Contents) -> None:
    assert "preprocessor_config.json" in json.loads(contents["manifest.json"])["files"]
    found = verify(packed)
    assert (found.kind, found.golden_cases) == ("desktop", 5)
    assert [len(case.get("pictures", [])) for case in golden(contents)["cases"]] == [0, 0, 0, 1, 2]


def test_a_page_for_lfm3_vl_is_refused_by_name(seeing_artifact: Artifact, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"an LFM3-VL: transformers\.js has no class"):
        bundle(seeing_artifact, "web", tmp_path / "web")


def test_cases_with_pictures_can_be_replayed(artifact: Artifact, contents: Contents) -> None:
    session = runtimes.first(artifact.manifest).open_session(artifact.folder, artifact.manifest)
    for case in golden(contents)["cases"][3:]:
        seen = []
        for image in case["images"]:
            patches = np.frombuffer(base64.b64decode(image["patches"]), "<f4")
            rows, columns = image["rows"], image["columns"]
            seen.append(session.encode(patches.reshape(rows * columns, -1), rows, columns))
        session.reset()
        logits = session.prefill_with_images(case["prompt"], np.concatenate(seen))
        for step in case["steps"]:
            assert int(logits.argmax()) == step["top"][0]
            np.testing.assert_allclose(logits[step["top"]], step["logits"], atol=1e-6)
            logits = session.decode(step["top"][0]) if step is not case["steps"][-1] else logits


def test_the_pixels_are_what_the_processor_makes_of_the_pictures(artifact: Artifact, contents: Contents) -> None:
    vision = read_model_config(artifact.folder / "config.json").vision
    assert vision is not None
    processor = load_processor(artifact.folder, vision)
    case = golden(contents)["cases"][4]
    images = [Image.open(io.BytesIO(base64.b64decode(png))) for png in case["pictures"]]
    patches = b"".join(base64.b64decode(image["patches"]) for image in case["images"])
    assert processor.prepare(images).tensors["pixel_values"].numpy().tobytes() == patches


def spoiled_case(contents: Contents, **changes: Any) -> Contents:
    document = golden(contents)
    document["cases"][3] |= changes
    return contents | {"golden.json": json.dumps(document).encode()}


def spoiled_file(contents: Contents, name: str, data: bytes | None) -> Contents:
    """With that file changed, or gone, and the manifest's word for it."""
    manifest = json.loads(contents["manifest.json"])
    others = {other: content for other, content in contents.items() if other != name}
    del manifest["files"][name]
    if data is not None:
        found = measure(data)
        manifest["files"][name] = FileEntry(size=found.size, sha256=found.sha256).model_dump()
        manifest["files"] = dict(sorted(manifest["files"].items()))
        others[name] = data
    return others | {"manifest.json": json.dumps(manifest, indent=2).encode()}


def wrong(contents: Contents) -> dict[str, tuple[Contents, str]]:
    case = golden(contents)["cases"][3]
    image = case["images"][0]
    few = base64.b64encode(base64.b64decode(image["patches"])[:-4]).decode()
    nan = base64.b64encode(base64.b64decode(image["patches"])[:-4] + b"\0\0\xc0\x7f").decode()
    token = json.loads(contents["config.json"])["image_token_id"]
    settings = json.loads(contents["preprocessor_config.json"])
    name = "preprocessor_config.json"
    return {
        "too few pixels": (spoiled_case(contents, images=[image | {"patches": few}]), "do not fill the patches"),
        "no number": (spoiled_case(contents, images=[image | {"patches": nan}]), "are no numbers"),
        "no base64": (spoiled_case(contents, pictures=["?"]), "base64"),
        "no pixels": (spoiled_case(contents, images=[]), "pixels of 0"),
        "no picture": (spoiled_case(contents, pictures=[]), "0 pictures"),
        "other places": (spoiled_case(contents, prompt=[*case["prompt"], token]), "places for"),
        "odd rows": (spoiled_case(contents, images=[image | {"rows": 3}]), "no multiples of 2"),
        "another patch size": (
            spoiled_file(contents, name, json.dumps(settings | {"patch_size": 16}).encode()),
            "patch_size is 16; the model's config.json says 4",
        ),
        "no processor": (spoiled_file(contents, name, None), "has neither processor_config.json"),
    }


def test_what_is_wrong_with_pictures_is_one_line(contents: Contents, tmp_path: Path) -> None:
    for number, (fault, (files, says)) in enumerate(wrong(contents).items()):
        path = archived(described(files, "desktop"), tmp_path / f"{number}.zip")
        with pytest.raises(BundleError, match=says) as caught:
            verify(path)
        assert "\n" not in str(caught.value), fault


def test_a_good_one_made_that_way_passes(contents: Contents, tmp_path: Path) -> None:
    assert verify(archived(described(contents, "desktop"), tmp_path / "good.zip")).golden_cases == 5
