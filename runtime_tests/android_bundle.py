"""An Android bundle of an artifact, as the app expects it: stored entries, `bundle.json` first and vouching for all."""

from __future__ import annotations

import hashlib
import json
import zipfile
from pathlib import Path
from typing import Any

from lfm2_export.artifact.folder import Artifact
from lfm2_export.bundle.golden import golden_cases
from lfm2_export.checkpoint.tokenizer import ChatTokenizer


def write_bundle(artifact: Artifact, tokenizer: ChatTokenizer, archive: Path) -> None:
    write_archive(bundle_files(artifact, tokenizer), archive)


def bundle_files(artifact: Artifact, tokenizer: ChatTokenizer) -> dict[str, bytes]:
    """Every entry's content by name, in order."""
    files = {name: (artifact.folder / name).read_bytes() for name in ["manifest.json", *artifact.manifest.files]}
    files["golden.json"] = json.dumps(golden_cases(artifact, tokenizer)).encode()
    manifest = artifact.manifest
    index = {
        "schema_version": 1,
        "kind": "android",
        "source": manifest.source.name,
        "random_weights": manifest.source.random_weights,
        "recipe": manifest.recipe["name"],
        "target": manifest.target,
        "form": manifest.form,
        "window": manifest.window,
        "runtime_requirement": manifest.runtime_requirement,
        "eos_ids": list(tokenizer.eos_ids),
    }
    return with_index(files, index)


def with_index(files: dict[str, bytes], index: dict[str, Any]) -> dict[str, bytes]:
    """The files with a `bundle.json` before them that vouches for each as it is now."""
    files = {name: content for name, content in files.items() if name != "bundle.json"}
    entries = {
        name: {"size": len(content), "sha256": hashlib.sha256(content).hexdigest()} for name, content in files.items()
    }
    return {"bundle.json": json.dumps({**index, "files": entries}, indent=2).encode(), **files}


def write_archive(files: dict[str, bytes], archive: Path) -> None:
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_STORED) as bundle:
        for name, content in files.items():
            bundle.writestr(zipfile.ZipInfo(name), content)


def write_folder(files: dict[str, bytes], folder: Path) -> Path:
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return folder
