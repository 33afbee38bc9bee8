"""Web bundles: whole or absent, the same bytes each time, JavaScript only as pinned. The page itself: runtime_tests."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest

from lfm2_export.artifact.folder import Artifact, open_artifact
from lfm2_export.bundle import npm
from lfm2_export.bundle.pack import bundle
from lfm2_export.cli.main import run
from lfm2_export.errors import ArtifactError, MissingDependencyError, UsageError
from lfm2_export.pipeline import export

Contents = Callable[[Path], dict[str, bytes]]


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    output = tmp_path_factory.mktemp("bundled") / "nano-onnx-int4"
    return export("nano", "onnx-int4", output, overrides=["window=64"], verify=False)[0]


@pytest.fixture
def node_modules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with small stand-ins for the pinned files, pinned in their place."""
    folder, pieces = tmp_path / "node_modules", []
    for piece in npm.PIECES:
        path = folder / piece.package / piece.file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data := piece.target.encode())
        pieces.append(piece._replace(sha256=hashlib.sha256(data).hexdigest()))
    monkeypatch.setattr(npm, "PIECES", tuple(pieces))
    return folder


def test_holds_page_runtime_artifact_and_golden_cases(artifact: Artifact, node_modules: Path, tmp_path: Path) -> None:
    output = bundle(artifact, "web", tmp_path / "web", node_modules=node_modules).path
    about = json.loads((output / "bundle.json").read_bytes())
    found = {path.relative_to(output).as_posix() for path in output.rglob("*") if path.is_file()}
    assert found == {*about["files"], "bundle.json"}
    for name, entry in about["files"].items():
        assert hashlib.sha256((output / name).read_bytes()).hexdigest() == entry["sha256"]
    assert {"index.html", "worker.js", "runtime/onnxruntime.wasm", "model/manifest.json", "golden.json"} <= found
    assert open_artifact(output / "model").manifest == artifact.manifest
    assert about["model"]["file"] == "onnx/model_q4.onnx"
    assert about["eos_ids"] == [7]
    conv = {"past": "past_conv.0", "present": "present_conv.0", "dtype": "float32", "shape": ["batch_size", 128, 3]}
    assert about["states"][0] == conv
    cases = json.loads((output / "golden.json").read_bytes())["cases"]
    assert cases[0]["reply"] == "The sky is blue."
    assert all(step["logits"] == sorted(step["logits"], reverse=True) for case in cases for step in case["steps"])


def test_the_same_artifact_gives_the_same_bytes(
    artifact: Artifact, node_modules: Path, tmp_path: Path, contents: Contents
) -> None:
    first = contents(bundle(artifact, "web", tmp_path / "1", node_modules=node_modules).path)
    assert contents(bundle(artifact, "web", tmp_path / "2", node_modules=node_modules).path) == first


def test_replaces_only_a_bundle_and_only_when_forced(artifact: Artifact, node_modules: Path, tmp_path: Path) -> None:
    output = bundle(artifact, "web", tmp_path / "web", node_modules=node_modules).path
    with pytest.raises(UsageError, match="--force"):
        bundle(artifact, "web", output, node_modules=node_modules)
    bundle(artifact, "web", output, node_modules=node_modules, force=True)
    (foreign := tmp_path / "foreign").mkdir()
    (foreign / "thesis.txt").write_text("years of work")
    with pytest.raises(UsageError, match="not made by"):
        bundle(artifact, "web", foreign, node_modules=node_modules, force=True)


@pytest.mark.parametrize("fault", ["missing", "altered"])
def test_javascript_that_is_not_the_pinned_one_is_refused(
    artifact: Artifact, node_modules: Path, tmp_path: Path, fault: str
) -> None:
    path = node_modules / "onnxruntime-web" / "dist" / "ort-wasm-simd-threaded.wasm"
    path.unlink() if fault == "missing" else path.write_bytes(b"other")
    with pytest.raises(UsageError, match=r"onnxruntime-web@1\.30\.0"):
        bundle(artifact, "web", tmp_path / "web", node_modules=node_modules)
    assert [entry.name for entry in tmp_path.iterdir()] == ["node_modules"]


def test_an_artifact_that_no_browser_runs_is_refused_before_any_work(artifact: Artifact, tmp_path: Path) -> None:
    changed = artifact.manifest.model_copy(deep=True)
    changed.methods[0].inputs[3].dtype = "bfloat16"
    with pytest.raises(UsageError, match="float32"):
        bundle(Artifact(artifact.folder, changed), "web", tmp_path / "web")
    other = artifact.manifest.model_copy(update={"target": "xnnpack"})
    with pytest.raises(UsageError, match="onnx recipe"):
        bundle(Artifact(artifact.folder, other), "web", tmp_path / "web")
    experts = artifact.manifest.model_copy(deep=True)
    experts.source.config["model_type"] = "lfm2_moe"
    with pytest.raises(UsageError, match="mixture of experts"):
        bundle(Artifact(artifact.folder, experts), "web", tmp_path / "web")
    with pytest.raises(ArtifactError):
        open_artifact(tmp_path)
    assert not list(tmp_path.iterdir())


def test_the_command_refuses_other_kinds_in_one_line(artifact: Artifact, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        run(["bundle", str(artifact.folder), "--for", "toaster"])
    assert left.value.code == 2
    shown = capsys.readouterr().err
    assert "'toaster'; known: android, ios, desktop, web" in shown
    assert shown.count("\n") == 1


class TestNpm:
    """Without --node-modules the user's npm is asked, once."""

    @pytest.fixture
    def cache(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
        return tmp_path / "cache"

    def _npm(self, folder: Path, body: str, monkeypatch: pytest.MonkeyPatch) -> None:
        folder.mkdir()
        (folder / "npm").write_text(f"#!/bin/sh\n{body}\n")
        (folder / "npm").chmod(0o755)
        monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")

    def test_packages_are_fetched_once_and_only_the_pinned_files_unpacked(
        self, cache: Path, node_modules: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        (archives := tmp_path / "archives").mkdir()
        for package in {piece.package for piece in npm.PIECES}:
            name = package.replace("/", "_").replace("@", "")
            with tarfile.open(archives / f"{name}.tgz", "w:gz") as tar:
                tar.add(node_modules / package, "package")
                tar.add(__file__, "../../escaped.py")
        log = tmp_path / "log"
        body = (
            f'echo "$4" >> {log}; n=$(echo "$4" | sed -e "s/^@//" -e "s/@.*//" -e "s#/#_#"); '
            f'cp {archives}/$n.tgz . && echo "[{{\\"filename\\": \\"$n.tgz\\"}}]"'
        )
        self._npm(tmp_path / "bin", body, monkeypatch)
        for number in "12":
            npm.copy_pieces(tmp_path / number, None, npm.PIECES)
            assert (tmp_path / number / "onnxruntime.mjs").read_bytes() == b"onnxruntime.mjs"
        assert sorted(log.read_text().split()) == sorted({f"{p.package}@{p.version}" for p in npm.PIECES})
        assert not list(tmp_path.rglob("escaped.py"))
        kept = {path.name for path in cache.rglob("*") if path.is_file()}
        assert kept == {Path(piece.file).name for piece in npm.PIECES}

    def test_a_failing_npm_is_one_line_and_leaves_nothing(
        self, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        self._npm(tmp_path / "bin", "echo 'npm error network' >&2; exit 1", monkeypatch)
        with pytest.raises(MissingDependencyError, match="npm error network"):
            npm.copy_pieces(tmp_path / "runtime", None, npm.PIECES)
        assert not [path for path in cache.rglob("*") if path.is_file()]

    def test_no_npm_says_what_to_do(self, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("PATH", str(tmp_path))
        with pytest.raises(MissingDependencyError, match="--node-modules"):
            npm.copy_pieces(tmp_path / "runtime", None, npm.PIECES)


_SMALL_FILES = """
import errno, resource, sys
from pathlib import Path
from lfm2_export.bundle import web
resource.setrlimit(resource.RLIMIT_FSIZE, (10, resource.RLIM_INFINITY))
try:
    web.gather(None, Path(sys.argv[1]), None)
except OSError as error:
    print(errno.errorcode.get(error.errno), error.filename)
"""


def test_what_stops_the_copy_of_the_page_is_the_systems_own_error(tmp_path: Path) -> None:
    """By its number the command knows what to advise; `shutil.copytree` raises one without."""
    words = [sys.executable, "-c", _SMALL_FILES, str(tmp_path)]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout.split()[:1]) == (0, ["EFBIG"]), done.stdout + done.stderr
