"""The artifact folder: sealing it (manifest with sizes and checksums) and opening it with every check."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError

from lfm2_export.artifact.manifest import SCHEMA_VERSION, FileEntry, Manifest
from lfm2_export.artifact.names import unsafe
from lfm2_export.artifact.strict_json import check_version, parse_json
from lfm2_export.errors import ArtifactError, field_error
from lfm2_export.files import FolderKind, sha256

MANIFEST = "manifest.json"
MAX_MANIFEST_BYTES = 16 << 20
FOR_PROOF = ("calibration.json", "quantized.safetensors")  # what only `parity` reads


@dataclass(frozen=True)
class Artifact:
    """An opened artifact: its folder and its validated manifest."""

    folder: Path
    manifest: Manifest


def seal(folder: Path) -> dict[str, FileEntry]:
    """Size and SHA-256 of every file of the folder but its own manifest, by relative path, sorted."""
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path != folder / MANIFEST)
    return {
        path.relative_to(folder).as_posix(): FileEntry(
            size=path.stat().st_size, sha256=sha256(path), for_proof=path.relative_to(folder).as_posix() in FOR_PROOF
        )
        for path in files
    }


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Write `manifest.json`, indented; the same content gives the same bytes."""
    (folder / MANIFEST).write_bytes((manifest.model_dump_json(indent=2) + "\n").encode())


def open_artifact(folder: Path) -> Artifact:
    """Read the manifest and check every file it lists.

    Raises ArtifactError, in one line that names the file, for a missing or malformed manifest, an unknown schema
    version, a path that leaves the folder, a missing, resized or altered file, and a file nobody vouches for.
    """
    manifest = _read_manifest(folder / MANIFEST)
    for name, entry in manifest.files.items():
        path = _inside(folder, name)
        if not path.is_file():
            raise ArtifactError(f"{folder / name}: listed in the manifest but missing")
        size = path.stat().st_size
        if size != entry.size:
            raise ArtifactError(f"{folder / name}: {size} bytes, the manifest says {entry.size}; export again")
        if sha256(path) != entry.sha256:
            raise ArtifactError(f"{folder / name}: SHA-256 differs from the manifest; the file was altered or damaged")
    for path in folder.rglob("*"):
        name = path.relative_to(folder).as_posix()
        if path.is_symlink() or (path.is_file() and name != MANIFEST and name not in manifest.files):
            raise ArtifactError(f"{path}: not listed in the manifest; remove it")
    for method in manifest.methods:
        if method.file not in manifest.files:
            raise ArtifactError(f"{folder / MANIFEST}: method {method.name!r} names unlisted file {method.file!r}")
    return Artifact(folder, manifest)


def _listed(folder: Path) -> set[str]:
    if not (folder / MANIFEST).is_file():
        raise ArtifactError(f"it has no {MANIFEST}")
    return {MANIFEST, *_read_manifest(folder / MANIFEST).files}


KIND = FolderKind("export", _listed)


def _read_manifest(path: Path) -> Manifest:
    if path.is_symlink() or not path.is_file():
        raise ArtifactError(f"{path}: not found; is {path.parent} an artifact folder made by `lfm2-export export`?")
    if path.stat().st_size > MAX_MANIFEST_BYTES:
        raise ArtifactError(f"{path}: larger than {MAX_MANIFEST_BYTES} bytes, that is no manifest")
    return parse_manifest(path.read_bytes(), str(path))


def parse_manifest(data: bytes, where: str) -> Manifest:
    """The manifest in these bytes; ArtifactError, one line that begins with `where`, if they are none."""
    document = parse_json(data, where)
    check_version(document, SCHEMA_VERSION, where)
    try:
        return Manifest.model_validate(document)
    except ValidationError as error:
        raise ArtifactError(f"{where}: {field_error(error)}") from error


def _inside(folder: Path, name: str) -> Path:
    if (why := unsafe(name)) is not None:
        raise ArtifactError(f"{folder / MANIFEST}: file path {name!r:.200} {why}")
    path = folder / name
    if not path.resolve().is_relative_to(folder.resolve()):
        raise ArtifactError(f"{folder / MANIFEST}: file path {name!r} leaves the folder through a link")
    return path
