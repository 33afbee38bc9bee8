"""Artifact folders that were damaged or forged: refused in one line that names the file."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from lfm2_export.artifact.folder import open_artifact, seal, write_manifest
from lfm2_export.artifact.manifest import Manifest, MethodSpec, Source
from lfm2_export.errors import ArtifactError


@pytest.fixture
def good(tmp_path: Path) -> Path:
    """A well-formed artifact folder; nothing here loads its model."""
    folder = tmp_path / "artifact"
    folder.mkdir()
    (folder / "model.onnx").write_bytes(b"model")
    (folder / "config.json").write_text("{}")
    manifest = Manifest(
        files=seal(folder),
        source=Source(name="nano", weights_sha256="0" * 64, config={}),
        recipe={"name": "x", "summary": "y"},
        target="onnx",
        form="explicit",
        transport="inplace",
        cache_layout="heads-time",
        window=64,
        chat=False,
        methods=[MethodSpec(name="model", file="model.onnx", inputs=[], outputs=[], max_tokens=64)],
        quantization={},
        versions={},
        runtime_requirement="onnxruntime",
    )
    write_manifest(folder, manifest)
    return folder


def edited(change: Callable[[dict], object]) -> Callable[[Path], None]:
    """A corruption that edits the manifest's JSON."""

    def corrupt(folder: Path) -> None:
        document = json.loads((folder / "manifest.json").read_text())
        change(document)
        (folder / "manifest.json").write_text(json.dumps(document))

    return corrupt


def _escape(name: str) -> Callable[[Path], None]:
    return edited(lambda d: d["files"].update({name: d["files"]["model.onnx"]}))


def _link_out(folder: Path) -> None:
    outside = folder.parent / "outside"
    outside.write_bytes(b"model")
    (folder / "model.onnx").unlink()
    (folder / "model.onnx").symlink_to(outside)


HOSTILE: dict[str, tuple[Callable[[Path], object], str]] = {
    "no manifest": (lambda f: (f / "manifest.json").unlink(), "not found"),
    "manifest is a link": (
        lambda f: (f / "manifest.json").rename(f / "m") and (f / "manifest.json").symlink_to(f / "m"),
        "not found",
    ),
    "manifest is empty": (lambda f: (f / "manifest.json").write_text(""), "not valid JSON"),
    "manifest is truncated": (lambda f: (f / "manifest.json").write_text('{"schema_version": 1,'), "not valid JSON"),
    "manifest is a list": (lambda f: (f / "manifest.json").write_text("[]"), "schema version None"),
    "manifest nests endlessly": (lambda f: (f / "manifest.json").write_text("[" * 200_000), "not valid JSON"),
    "manifest is binary": (lambda f: (f / "manifest.json").write_bytes(b"\xff\xfe\x00"), "not valid JSON"),
    "manifest is huge": (lambda f: (f / "manifest.json").write_text(" " * (17 << 20)), "larger than"),
    "schema of the future": (edited(lambda d: d.update(schema_version=2)), "schema version 2"),
    "unknown key": (edited(lambda d: d.update(surprise=1)), "surprise"),
    "missing key": (edited(lambda d: d.pop("window")), "window"),
    "wrong type": (edited(lambda d: d.update(window="many")), "window"),
    "bad checksum text": (edited(lambda d: d["files"]["model.onnx"].update(sha256="zz")), "sha256"),
    "negative size": (edited(lambda d: d["files"]["model.onnx"].update(size=-1)), "size"),
    "file altered": (lambda f: (f / "model.onnx").write_bytes(b"MODEL"), "SHA-256 differs"),
    "file truncated": (lambda f: (f / "model.onnx").write_bytes(b"mod"), "3 bytes, the manifest says 5"),
    "file missing": (lambda f: (f / "model.onnx").unlink(), "missing"),
    "file replaced by a folder": (lambda f: (f / "model.onnx").unlink() or (f / "model.onnx").mkdir(), "missing"),
    "file nobody vouches for": (lambda f: (f / "extra.bin").write_bytes(b"x"), "not listed"),
    "path climbs out": (_escape("../outside"), "leaves the folder"),
    "path is absolute": (_escape("/etc/hostname"), "leaves the folder"),
    "path with backslashes": (_escape("..\\outside"), "leaves the folder"),
    "path is empty": (_escape(""), "leaves the folder"),
    "file is a link out": (_link_out, "leaves the folder through a link"),
    "method in an unlisted file": (edited(lambda d: d["methods"][0].update(file="other.onnx")), "unlisted file"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_artifact_is_refused_in_one_line(name: str, good: Path) -> None:
    corrupt, expected = HOSTILE[name]
    open_artifact(good)
    corrupt(good)
    before = sorted(path.name for path in good.parent.rglob("*"))
    with pytest.raises(ArtifactError) as caught:
        open_artifact(good)
    message = str(caught.value)
    assert "\n" not in message
    assert str(good) in message
    assert expected in message
    assert sorted(path.name for path in good.parent.rglob("*")) == before


@pytest.mark.parametrize(("name", "data"), [("model.onnx", b"not an onnx file"), ("model.pte", b"not a pte file")])
@pytest.mark.parametrize("cut", [0, 8, 16])
def test_a_model_file_that_no_runtime_can_load_is_one_line(name: str, data: bytes, cut: int, good: Path) -> None:
    from lfm2_export import runtimes

    (good / name).write_bytes(data[:cut])
    manifest = open_artifact_unchecked(good)
    manifest.methods[0].file = name
    manifest.source.config["vocab_size"] = 8
    runtime = "onnxruntime" if name.endswith("onnx") else "executorch"
    with pytest.raises(ArtifactError) as caught:
        runtimes.find(runtime).open_session(good, manifest)
    assert name in str(caught.value)
    assert "\n" not in str(caught.value)


def open_artifact_unchecked(folder: Path) -> Manifest:
    return Manifest.model_validate_json((folder / "manifest.json").read_text())
