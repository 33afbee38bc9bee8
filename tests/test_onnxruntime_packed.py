"""onnxruntime over weights that it packed once: the same bits, out of a file that is made once for each machine."""

from __future__ import annotations

import functools
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from lfm2_export import runtimes
from lfm2_export.artifact.folder import Artifact
from lfm2_export.cli.main import run
from lfm2_export.errors import ArtifactError
from lfm2_export.pipeline import export
from lfm2_export.runtimes import onnxruntime, onnxruntime_packed

PROMPT = [1, 6, 40, 73, 22]


@pytest.fixture(scope="module")
def make(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Artifact]:
    @functools.cache
    def made(recipe: str) -> Artifact:
        output = tmp_path_factory.mktemp("packed") / recipe
        return export("nano", recipe, output, overrides=["window=64"], verify=False)[0]

    return made


@pytest.fixture
def artifact(make: Callable[[str], Artifact]) -> Artifact:
    return make("onnx-int4")


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("LFM2_EXPORT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def said_by(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, Any]:
    with pytest.raises(SystemExit) as left:
        run(list(arguments))
    assert not left.value.code
    return json.loads(capsys.readouterr().out)


def contents(folder: Path) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("recipe", ["onnx-fp32", "onnx-int8", "onnx-int4", "onnx-int4-mixed", "onnx-q4f16"])
def test_it_computes_the_same_bits_and_packs_only_once(
    recipe: str, make: Callable[[str], Artifact], cache: Path
) -> None:
    artifact = make(recipe)
    before = contents(artifact.folder)
    ours = onnxruntime_packed.RUNTIME.open_session(artifact.folder, artifact.manifest, threads=1)
    made = contents(cache)
    again = onnxruntime_packed.RUNTIME.open_session(artifact.folder, artifact.manifest, threads=1)
    plain = onnxruntime.RUNTIME.open_session(artifact.folder, artifact.manifest, threads=1)
    for feed in (PROMPT, [7], [300], [12]):
        expected = plain.prefill(feed)
        assert np.array_equal(ours.prefill(feed), expected)
        assert np.array_equal(again.prefill(feed), expected)
    assert contents(cache) == made
    assert len(made) == 2
    assert contents(artifact.folder) == before


def test_the_file_holds_every_matrix_packed(artifact: Artifact, cache: Path) -> None:
    model = onnx.load(onnxruntime_packed.packed(artifact.folder, artifact.manifest), load_external_data=False)
    matrices = {node.input[1] for node in model.graph.node if node.op_type in ("MatMulNBits", "MatMul")}
    stored = {tensor.name: {entry.key for entry in tensor.external_data} for tensor in model.graph.initializer}
    packed = {name for name, keys in stored.items() if any(key.startswith("prepacked") for key in keys)}
    assert matrices
    assert packed == matrices & stored.keys()


def test_it_needs_no_torch() -> None:
    program = "import sys, lfm2_export.runtimes.onnxruntime_packed; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", program], check=True)


def test_what_is_packed_wrongly_is_not_kept(artifact: Artifact, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    genuine = onnxruntime_packed._pack

    def zeroed(source: Path, target: Path) -> None:  # what onnxruntime 1.31.1 does when scales stay in the graph
        genuine(source, target)
        data = target.with_name(f"{target.name}_data")
        data.write_bytes(bytes(data.stat().st_size))

    monkeypatch.setattr(onnxruntime_packed, "_pack", zeroed)
    with pytest.raises(ArtifactError, match="packs this model wrongly"):
        onnxruntime_packed.packed(artifact.folder, artifact.manifest)
    assert not contents(cache)


def test_another_version_or_artifact_is_packed_anew(artifact: Artifact, monkeypatch: pytest.MonkeyPatch) -> None:
    first = onnxruntime_packed.packed(artifact.folder, artifact.manifest)
    monkeypatch.setattr(onnxruntime_packed.RUNTIME, "version", lambda: "1.99.0")
    assert onnxruntime_packed.packed(artifact.folder, artifact.manifest) != first


def test_it_is_chosen_by_name_only(artifact: Artifact, cache: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "onnxruntime-packed" not in runtimes.usual(artifact.manifest)
    assert "onnxruntime-packed" in runtimes.able(artifact.manifest)
    said = {}
    for runtime in ("onnxruntime", "onnxruntime-packed"):
        line = ["chat", str(artifact.folder), "--runtime", runtime, "--prompt", "What color is the sky?", "--json"]
        said[runtime] = said_by(capsys, *line)["reply"]
    assert said["onnxruntime-packed"] == said["onnxruntime"]
    assert cache.is_dir()


@pytest.mark.slow
def test_bench_measures_it(artifact: Artifact, capsys: pytest.CaptureFixture[str]) -> None:
    line = ["bench", str(artifact.folder), "--runtime", "onnxruntime", "--runtime", "onnxruntime-packed"]
    report = said_by(
        capsys, *line, "--contexts", "16", "--prefill", "16", "--rounds", "1", "--threads", "1", "--json", "-q"
    )
    names = [contender["runtime"].split()[0] for contender in report["contenders"]]
    assert names == ["onnxruntime", "onnxruntime-packed"]
