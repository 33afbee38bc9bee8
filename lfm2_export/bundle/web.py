"""A web bundle: static files that chat in a browser, and prove themselves there. Nothing is loaded from elsewhere.

index.html and its scripts (`page/`), `runtime/` (onnxruntime-web and the text libraries, see `npm.py`), `model/` (the
artifact folder, whole), `golden.json` (see `golden.py`) and `bundle.json`, which tells the page what it is about.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from importlib.resources import as_file, files
from pathlib import Path
from typing import Any

from lfm2_export.artifact.folder import Artifact, open_artifact, seal
from lfm2_export.artifact.manifest import Manifest
from lfm2_export.bundle.golden import golden_cases
from lfm2_export.bundle.npm import copy_pieces
from lfm2_export.checkpoint.config import from_dict
from lfm2_export.checkpoint.tokenizer import ChatTokenizer
from lfm2_export.errors import UsageError
from lfm2_export.files import BUNDLE, check_free, staged_folder, write_text

SCHEMA_VERSION = 1


def pack(
    artifact: Artifact,
    output: Path,
    *,
    node_modules: Path | None = None,
    force: bool = False,
    stage: Callable[[str], None] = lambda _: None,
) -> Path:
    """Write the bundle to `output`, whole or not at all.

    Raises UsageError for an artifact that no browser runtime here runs, and what `copy_pieces` raises.
    """
    tokenizer = _check(artifact)
    check_free(output, force)
    with staged_folder(output, force) as folder:
        stage("answering the golden cases")
        golden = golden_cases(artifact, tokenizer)
        stage("collecting the JavaScript runtime")
        versions = copy_pieces(folder / "runtime", node_modules)
        stage("copying page and artifact")
        with as_file(files("lfm2_export.bundle") / "page") as page:
            shutil.copytree(page, folder, dirs_exist_ok=True)
        shutil.copytree(artifact.folder, folder / "model")
        open_artifact(folder / "model")  # what was copied is what was checked
        write_text(folder / "golden.json", json.dumps(golden, ensure_ascii=False) + "\n")
        sealed = {name: entry.model_dump() for name, entry in seal(folder).items()}
        document = {**_describe(artifact.manifest, tokenizer, versions), "files": sealed}
        write_text(folder / BUNDLE, json.dumps(document, indent=2, ensure_ascii=False) + "\n")
    return output


def _check(artifact: Artifact) -> ChatTokenizer:
    manifest, folder = artifact.manifest, artifact.folder
    if manifest.target != "onnx":
        raise UsageError(
            f"{folder}: a browser runs ONNX artifacts, this one is {manifest.target}; export an onnx recipe"
        )
    method = manifest.methods[0]
    if other := {spec.dtype for spec in (*method.inputs, *method.outputs)} - {"float32", "int64"}:
        raise UsageError(f"{folder}: the page keeps state and logits in float32, this artifact has {', '.join(other)}")
    tokenizer = ChatTokenizer.load(folder, from_dict(manifest.source.config, f"{folder}: manifest.json"))
    if tokenizer is None or not tokenizer.has_template:
        raise UsageError(f"{folder} has no tokenizer or chat template; a chat page needs both")
    return tokenizer


def _describe(manifest: Manifest, tokenizer: ChatTokenizer, versions: dict[str, str]) -> dict[str, Any]:
    """What the page reads: which files to load, the state's tensors, where a reply ends."""
    method = manifest.methods[0]
    data = sorted((name for name in manifest.files if name.startswith(f"{method.file}_data")), key=_chunk)
    return {
        "schema_version": SCHEMA_VERSION,
        "kind": "web",
        "source": manifest.source.name,
        "random_weights": manifest.source.random_weights,
        "recipe": manifest.recipe["name"],
        "model": {
            "file": method.file,
            "data": data,
            "bytes": sum(manifest.files[f].size for f in (method.file, *data)),
        },
        "states": [
            {"past": spec.name, "present": _present(spec.name), "shape": spec.shape}
            for spec in method.inputs
            if spec.name.startswith("past_")
        ],
        "window": manifest.window,
        "eos_ids": list(tokenizer.eos_ids),
        "versions": versions,
    }


def _present(past: str) -> str:
    """`past_conv.3` → `present_conv.3`; `past_key_values.5.key` → `present.5.key`."""
    kind, _, rest = past.partition(".")
    return f"present_conv.{rest}" if kind == "past_conv" else f"present.{rest}"


def _chunk(name: str) -> int:
    """`…_data` → 0, `…_data_3` → 3."""
    return int(name.rpartition("_data")[2].removeprefix("_") or 0)
