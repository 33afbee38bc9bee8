"""What a manifest says of its model is held against the file, before a token is fed: one line, whatever the runtime."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from command import code_of

from lfm2_export.artifact.folder import open_artifact
from lfm2_export.pipeline import export

ARTIFACTS = {
    "explicit": ("xnnpack-fp32", ["window=64"]),
    "resident": ("xnnpack-fp32", ["window=64", "form=resident"]),
    "onnx": ("onnx-int4", ["window=64"]),
    "half": ("onnx-fp16", ["window=64"]),  # its tables are cast, and its states are fp16
}
RUNTIMES = [
    ("explicit", "executorch"),
    ("resident", "executorch"),
    ("onnx", "onnxruntime"),
    ("onnx", "onnxruntime-packed"),
    ("onnx", "genai"),
    ("half", "onnxruntime"),
]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    folder = tmp_path_factory.mktemp("agreement")

    def make(name: str) -> Path:
        if not (folder / name).exists():
            recipe, changes = ARTIFACTS[name]
            export("nano", recipe, folder / name, overrides=changes, verify=False)
        return folder / name

    return make


def _window(document: dict[str, Any]) -> None:
    document["window"] = 99999


def _narrower(document: dict[str, Any]) -> None:
    document["window"] = 32


def _dtype(document: dict[str, Any]) -> None:
    document["methods"][0]["inputs"][-1]["dtype"] = "int32"


def _shape(document: dict[str, Any]) -> None:
    document["methods"][0]["outputs"][0]["shape"][-1] = 2048


def _more(document: dict[str, Any]) -> None:
    document["methods"][0]["inputs"].append({"name": "conv_state.9", "dtype": "float32", "shape": [1, 2, 128]})


def _fewer(document: dict[str, Any]) -> None:
    document["methods"][0]["outputs"].pop()


def _forged(artifact: Path, folder: Path, change: Callable[[dict[str, Any]], None]) -> Path:
    copy = Path(shutil.copytree(artifact, folder / "forged"))
    document = json.loads((copy / "manifest.json").read_text())
    change(document)
    (copy / "manifest.json").write_text(json.dumps(document))
    open_artifact(copy)  # nothing else is wrong with it
    return copy


@pytest.mark.parametrize("change", [_window, _narrower, _dtype, _shape, _more, _fewer])
@pytest.mark.parametrize(("kind", "runtime"), RUNTIMES)
def test_a_manifest_that_says_otherwise_is_refused_before_the_first_token(
    kind: str,
    runtime: str,
    change: Callable[[dict[str, Any]], None],
    made: Callable[[str], Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("LFM2_EXPORT_CACHE", str(tmp_path / "cache"))
    forged = _forged(made(kind), tmp_path, change)
    assert code_of("chat", str(forged), "--runtime", runtime, "--prompt", "What color is the sky?") == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err.count("\n") == 1
    assert "the manifest says" in shown.err
    assert str(forged) in shown.err or "packed" in shown.err


@pytest.mark.parametrize(("kind", "runtime"), RUNTIMES)
def test_one_that_says_what_is_there_is_believed(
    kind: str, runtime: str, made: Callable[[str], Path], capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["chat", str(made(kind)), "--runtime", runtime, "--prompt", "What color is the sky?"]
    assert code_of(*words, "--max-tokens", "2") == 0
    assert capsys.readouterr().out


def test_a_window_that_the_app_side_config_contradicts_is_refused(
    made: Callable[[str], Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    forged = _forged(made("onnx"), tmp_path, lambda _: None)
    config = forged / "genai_config.json"
    config.write_text(config.read_text().replace('"context_length": 64', '"context_length": 99'))
    document = json.loads((forged / "manifest.json").read_text())
    from lfm2_export.files import sha256

    document["files"]["genai_config.json"] |= {"sha256": sha256(config)}
    (forged / "manifest.json").write_text(json.dumps(document))
    assert code_of("chat", str(forged), "--runtime", "genai", "--prompt", "Hello") == 2
    assert "a window of 99, the manifest says 64" in capsys.readouterr().err
