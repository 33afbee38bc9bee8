"""`bundle.json`: what an app must know before it loads anything, and the checksum of every other file.

All of it follows from the artifact's manifest and its end tokens, so a checker writes it again and compares the bytes.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from lfm2_export.artifact.manifest import FileEntry, Manifest, MethodSpec
from lfm2_export.artifact.strict_json import check_version, parse_json
from lfm2_export.errors import BundleError, field_error
from lfm2_export.files import FolderKind

BUNDLE = "bundle.json"
MAX_BYTES = 16 << 20
SCHEMA_VERSION = 1
KINDS = ("android", "ios", "desktop", "web")


class Description(BaseModel):
    """The contents of `bundle.json`. Only a web bundle has the fields from `model` on."""

    model_config = ConfigDict(extra="forbid", strict=True)

    schema_version: Literal[1] = 1
    kind: Literal["android", "ios", "desktop", "web"]
    source: str  # the checkpoint's name
    random_weights: bool
    recipe: str
    target: str
    form: Literal["explicit", "resident"]
    window: int = Field(ge=1)  # tokens
    runtime_requirement: str  # what the app must link
    eos_ids: list[int]  # tokens that end a reply
    model: dict[str, Any] | None = None  # the decoder's ONNX file, its external data, and bytes of all files to load
    parts: dict[str, Any] | None = None  # what stands before the decoder of a model that takes images, likewise
    states: list[dict[str, Any]] | None = None  # the state's inputs, outputs, types and shapes
    versions: dict[str, str] | None = None  # of the JavaScript libraries
    files: dict[str, FileEntry]  # all but bundle.json itself, sorted

    def to_json(self) -> bytes:
        """The same description gives the same bytes."""
        proof = {"files": {"__all__": {"for_proof"}}}  # nothing that only a proof reads is in a bundle
        document = {key: value for key, value in self.model_dump(exclude=proof).items() if value is not None}
        return (json.dumps(document, indent=2, ensure_ascii=False) + "\n").encode()


def describe(
    kind: str, manifest: Manifest, eos_ids: Iterable[int], files: Mapping[str, FileEntry], **web: Any
) -> Description:
    """The description of a bundle of this artifact; `web` are the fields that only a web bundle has."""
    return Description.model_validate(
        {
            "kind": kind,
            "source": manifest.source.name,
            "random_weights": manifest.source.random_weights,
            "recipe": str(manifest.recipe["name"]),
            "target": manifest.target,
            "form": manifest.form,
            "window": manifest.window,
            "runtime_requirement": manifest.runtime_requirement,
            "eos_ids": list(eos_ids),
            "files": dict(sorted(files.items())),
            **web,
        }
    )


def parse_description(data: bytes, where: str) -> Description:
    """Raises ArtifactError or BundleError, one line, for bytes that `to_json` would not have given."""
    document = parse_json(data, where)
    check_version(document, SCHEMA_VERSION, where)
    try:
        description = Description.model_validate(document)
    except ValidationError as error:
        raise BundleError(f"{where}: {field_error(error)}") from error
    if description.to_json() != data:
        raise BundleError(f"{where}: not as `bundle` writes it; it was edited")
    return description


def _listed(folder: Path) -> set[str]:
    path = folder / BUNDLE
    if path.is_symlink() or not path.is_file() or path.stat().st_size > MAX_BYTES:
        raise BundleError(f"it has no {BUNDLE} of ours")
    return {BUNDLE, *parse_description(path.read_bytes(), str(path)).files}


KIND = FolderKind("bundle", _listed)


def web_fields(manifest: Manifest) -> dict[str, Any]:
    """Return what the web page reads beside the rest: which files to load, and the state's tensors."""
    decoder, *others = manifest.methods
    files = {method.name: _files(manifest, method) for method in manifest.methods}
    everything = [name for file, data in files.values() for name in (file, *data)]
    return {
        "model": {
            **_spelled(files[decoder.name]),
            "bytes": sum(manifest.files[name].size for name in everything),
        },
        "parts": {method.name: _spelled(files[method.name]) for method in others} or None,
        "states": [
            {"past": spec.name, "present": _present(spec.name), "dtype": spec.dtype, "shape": spec.shape}
            for spec in decoder.inputs
            if spec.name.startswith("past_")
        ],
    }


def _files(manifest: Manifest, method: MethodSpec) -> tuple[str, list[str]]:
    """A method's file, and the external data beside it in order."""
    data = (name for name in manifest.files if name.startswith(f"{method.file}_data"))
    return method.file, sorted(data, key=_chunk)


def _spelled(files: tuple[str, list[str]]) -> dict[str, Any]:
    file, data = files
    return {"file": file, "data": data}


def _present(past: str) -> str:
    """`past_conv.3` → `present_conv.3`; `past_key_values.5.key` → `present.5.key`."""
    kind, _, rest = past.partition(".")
    return f"present.{rest}" if kind == "past_key_values" else f"present{kind.removeprefix('past')}.{rest}"


def _chunk(name: str) -> int:
    """`…_data` → 0, `…_data_3` → 3; anything else as the last."""
    number = name.rpartition("_data")[2].removeprefix("_")
    return int(number) if number.isdecimal() and len(number) < 9 else 0 if not number else 1 << 30
