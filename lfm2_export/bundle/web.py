"""A web bundle: static files that chat in a browser, and prove themselves there. Nothing is loaded from elsewhere.

index.html and its scripts (`page/`), `runtime/` (onnxruntime-web, once for WebAssembly and once for WebGPU, and the
text libraries, see `npm.py`), `model/` (the artifact folder, whole), `attention.onnx`, by which the page tries the GPU
beforehand, `golden.json` (see `golden.py`) and `bundle.json`, which tells the page what it is about.
"""

from __future__ import annotations

import shutil
from importlib.resources import as_file, files
from pathlib import Path

from lfm2_export.artifact.folder import Artifact
from lfm2_export.artifact.manifest import Manifest
from lfm2_export.bundle import npm
from lfm2_export.errors import UsageError
from lfm2_export.runtimes._attention_check import Heads, model

_ATTENTION = "attention.onnx"


def gather(manifest: Manifest, scratch: Path, node_modules: Path | None) -> dict[str, Path]:
    """The page and its JavaScript, written below `scratch`, by name. Raises what `npm.copy_pieces` does."""
    folder = scratch / "web"
    with as_file(files("lfm2_export.bundle") / "page") as page:
        folder.mkdir()
        for part in page.iterdir():  # one by one: the error of `copytree` does not say which of the system's it was
            shutil.copyfile(part, folder / part.name)
    npm.copy_pieces(folder / "runtime", node_modules, _pieces(manifest))
    caches = [spec.shape for spec in manifest.methods[0].inputs if spec.name.endswith(".key") and len(spec.shape) == 4]
    for heads in {Heads(int(shape[1]), int(shape[3])) for shape in caches}:  # what slides has another operator
        (folder / _ATTENTION).write_bytes(model(heads))
    return {path.relative_to(folder).as_posix(): path for path in folder.rglob("*") if path.is_file()}


def versions(manifest: Manifest) -> dict[str, str]:
    """The pinned JavaScript packages."""
    return {piece.package: piece.version for piece in _pieces(manifest)}


def _pieces(manifest: Manifest) -> tuple[npm.Piece, ...]:
    return npm.PIECES + (npm.PICTURES if manifest.takes_images else ())


def check(artifact: Artifact) -> None:
    """Raise UsageError for an artifact that no browser runtime here runs."""
    manifest, folder = artifact.manifest, artifact.folder
    if manifest.target != "onnx":
        raise UsageError(
            f"{folder}: a browser runs ONNX artifacts, this one is {manifest.target}; export an onnx recipe"
        )
    if manifest.source.config.get("model_type") == "lfm2_moe":
        raise UsageError(f"{folder}: a mixture of experts: the page's onnxruntime-web 1.30 refuses integer experts")
    if manifest.takes_images and manifest.source.config.get("model_type") == "lfm3":
        raise UsageError(f"{folder}: an LFM3-VL: transformers.js has no class and so no processor for it")
    method = manifest.methods[0]
    if other := {spec.dtype for spec in (*method.inputs, *method.outputs)} - {"float32", "float16", "int64"}:
        raise UsageError(f"{folder}: the page knows float32 and float16, this artifact has {', '.join(other)}")
