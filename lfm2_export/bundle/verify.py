"""Is this what `bundle` or `export` wrote, whole and unaltered, and does it hold together? No runtime is needed.

A bundle is read once from front to back: every byte goes into a checksum. What it proves is that nothing was damaged on
the way; only a signature proves who made it.
"""

from __future__ import annotations

import hashlib
import re
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from pydantic import BaseModel

from lfm2_export.artifact.folder import MANIFEST, MAX_MANIFEST_BYTES, parse_manifest
from lfm2_export.artifact.manifest import Extent, FileEntry, Manifest
from lfm2_export.bundle import signature as signatures
from lfm2_export.bundle.checksums import sums
from lfm2_export.bundle.containers import Container, open_container
from lfm2_export.bundle.contract import Companions, check_files, check_manifest, max_error
from lfm2_export.bundle.description import BUNDLE, Description, describe, parse_description, web_fields
from lfm2_export.bundle.golden_schema import check_golden
from lfm2_export.checkpoint.config import LFM2Config
from lfm2_export.errors import ArtifactError, BundleError, CheckpointError

GOLDEN = "golden.json"
WEB_MODEL = "model/"  # where a web bundle keeps its artifact
_MAX_SMALL = 16 << 20
_LICENCE = re.compile(r"(licen[cs]e|copying|notice)", re.I)


class Verification(BaseModel):
    """The facts that were checked and found good."""

    path: str
    kind: Literal["artifact", "android", "ios", "desktop", "web"]
    form: str  # what it lies in: archive, parts or folder
    files: int
    bytes: int  # of all files
    sha256: str  # of bundle.json or manifest.json, which vouch for every other file
    source: str
    random_weights: bool
    recipe: str
    target: str
    state: Literal["explicit", "resident"]
    window: int
    runtime_requirement: str  # what the app must use
    proven: bool  # whether the manifest holds the parity gates that it passed
    unproven: str | None  # why they prove nothing: its own runtime has not been asked
    effort: Extent  # of that proof
    licences: list[str]  # files of the checkpoint that hold one
    golden_cases: int
    signed: bool  # whether a signature was checked
    seconds: float


def verify(path: Path | str, *, public_key: Path | None = None, signature: Path | None = None) -> Verification:
    """Check a bundle (archive, parts or folder) or an artifact folder, and with `public_key` who signed it.

    `signature` defaults to the bundle's path with `.sig` appended. Raises BundleError (exit code 1), one line, at the
    first thing that is wrong; UsageError where there is nothing to check.
    """
    started = time.perf_counter()
    path = Path(path)
    try:
        with open_container(path) as container:
            if BUNDLE not in container.sizes and container.form == "folder":
                found, vouching, described = _check_artifact(container), MANIFEST, None
            else:
                described = parse_description(container.read(BUNDLE, _MAX_SMALL), f"{path}: {BUNDLE}")
                found, vouching = _check_bundle(container, described), BUNDLE
            document = container.read(vouching, _MAX_SMALL)
            if public_key is not None:
                if described is None:
                    raise BundleError(f"{path}: an artifact folder is not signed; its bundle is")
                beside = path.resolve().with_name(f"{path.resolve().name}{signatures.SUFFIX}")
                signatures.check(document, signature or beside, public_key)
            manifest, cases = found
            return Verification(
                path=str(path),
                kind=described.kind if described else "artifact",
                form=container.form,
                files=len(container.sizes),
                bytes=sum(container.sizes.values()),
                sha256=hashlib.sha256(document).hexdigest(),
                source=manifest.source.name,
                random_weights=manifest.source.random_weights,
                recipe=manifest.recipe["name"],
                target=manifest.target,
                state=manifest.form,
                window=manifest.window,
                runtime_requirement=manifest.runtime_requirement,
                proven=bool(manifest.parity) and manifest.unproven is None,
                unproven=manifest.unproven,
                effort=manifest.effort,
                licences=licences(manifest),
                golden_cases=cases,
                signed=public_key is not None,
                seconds=time.perf_counter() - started,
            )
    except (ArtifactError, CheckpointError) as error:  # the same faults, found by the readers of single files
        raise BundleError(str(error)) from error


def licences(manifest: Manifest) -> list[str]:
    """The artifact's files that by their name are a licence of the checkpoint."""
    return sorted(name for name in manifest.files if _LICENCE.match(name))


def _check_bundle(container: Container, described: Description) -> tuple[Manifest, int]:
    """(manifest, number of golden cases). An archive has its files in the one order that `bundle` writes."""
    where = container.where
    names = list(container.sizes)
    if container.form != "folder" and names != [BUNDLE, *described.files]:
        raise BundleError(f"{where}: its files are not those that {BUNDLE} lists, in that order")
    _check_sums(container, described.files, {BUNDLE})
    prefix = WEB_MODEL if described.kind == "web" else ""
    manifest, config, (eos_ids, vision) = _check_contract(container, prefix)
    if missing := {f"{prefix}{name}" for name in manifest.shipped} - described.files.keys():
        raise BundleError(f"{where}: {MANIFEST} lists {min(missing)!r:.120}, which is not there")
    if prefix == "" and (extra := described.files.keys() - manifest.shipped.keys() - {MANIFEST, GOLDEN}):
        raise BundleError(f"{where}: {min(extra)!r:.120} is not listed in {MANIFEST}")
    for name, entry in manifest.shipped.items():
        if described.files[f"{prefix}{name}"] != entry:
            raise BundleError(f"{where}: {name!r:.120}: {MANIFEST} and {BUNDLE} differ")
    web = {**web_fields(manifest), "versions": described.versions} if prefix else {}
    expected = describe(described.kind, manifest, eos_ids or described.eos_ids, described.files, **web)
    if expected != described or not all(0 <= token < config.vocab_size for token in described.eos_ids):
        raise BundleError(f"{where}: {BUNDLE} says something else than {MANIFEST}")
    data = container.read(GOLDEN, _MAX_SMALL)
    limit = max_error(manifest, str(where))
    golden = check_golden(data, f"{where}: {GOLDEN}", config.vocab_size, manifest.window, limit, vision)
    return manifest, len(golden.cases)


def _check_artifact(container: Container) -> tuple[Manifest, int]:
    manifest, _, _ = _check_contract(container, "")
    _check_sums(container, manifest.files, {MANIFEST})
    return manifest, 0


def _check_contract(container: Container, prefix: str) -> tuple[Manifest, LFM2Config, Companions]:
    where = str(container.where)
    manifest = parse_manifest(container.read(f"{prefix}{MANIFEST}", MAX_MANIFEST_BYTES), f"{where}: {prefix}{MANIFEST}")
    config = check_manifest(manifest, where)
    return manifest, config, check_files(container, prefix, manifest, config)


def _check_sums(container: Container, files: Mapping[str, FileEntry], vouching: set[str]) -> None:
    """Exactly these files, each of its size, its SHA-256 and, in an archive, its CRC-32."""
    where = container.where
    if extra := container.sizes.keys() - files.keys() - vouching:
        raise BundleError(f"{where}: {min(extra)!r:.200} is not listed; nobody vouches for it")
    if missing := files.keys() - container.sizes.keys():
        raise BundleError(f"{where}: {min(missing)!r:.200} is listed but missing")
    for name, entry in files.items():
        if container.sizes[name] != entry.size:
            raise BundleError(f"{where}: {name!r:.200}: {container.sizes[name]} bytes, {entry.size} are listed")
    for name in container.sizes:
        found = sums(container.chunks(name))
        if name in files and found.sha256 != files[name].sha256:
            raise BundleError(f"{where}: {name!r:.200}: SHA-256 differs; the file was altered or damaged")
        if container.crc(name) not in (None, found.crc):
            raise BundleError(f"{where}: {name!r:.200}: CRC-32 differs; the archive was altered or damaged")
