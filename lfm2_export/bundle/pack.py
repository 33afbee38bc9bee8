"""What an app ships: an artifact with golden cases and a description, as one archive. Read it top to bottom."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

from lfm2_export.artifact.folder import MANIFEST, Artifact, open_artifact
from lfm2_export.artifact.manifest import Extent, FileEntry, Manifest
from lfm2_export.bundle import parts, web
from lfm2_export.bundle import signature as signatures
from lfm2_export.bundle.archive import ARCHIVE, Content, chunks, measure, plan, write_file, write_folder
from lfm2_export.bundle.budget import check_budget
from lfm2_export.bundle.checksums import Sums
from lfm2_export.bundle.containers import Folder
from lfm2_export.bundle.contract import check_files, check_manifest
from lfm2_export.bundle.description import BUNDLE, KIND, KINDS, Description, describe, web_fields
from lfm2_export.bundle.golden import golden_cases
from lfm2_export.bundle.parts import part_names, write_parts
from lfm2_export.bundle.verify import GOLDEN, WEB_MODEL, licences
from lfm2_export.checkpoint.config import from_dict
from lfm2_export.checkpoint.tokenizer import ChatTokenizer
from lfm2_export.errors import UsageError
from lfm2_export.files import Need, check_free, check_free_file, check_room, scratch_folder, write_bytes
from lfm2_export.files.hidden import resumable_bytes
from lfm2_export.progress import Progress, silent

_NPU = ("qnn", "onnx_qnn")  # targets for Qualcomm's NPU
_APPLE = ("coreml",)  # targets that run on Apple's systems alone


class Bundle(NamedTuple):
    """The output that was written: an archive, a folder of parts, or for the web a folder of files."""

    path: Path
    description: Description
    size: int  # bytes
    parts: int  # files that the archive was cut into; 0 when it was not
    resumed: int  # bytes of them that an interrupted run had written already
    licences: list[str]  # the checkpoint's licence texts; empty when it came without one
    proof: Extent | None  # how much the artifact's proof measured; None: it has none
    unproven: str | None  # why that is no proof: its own runtime was not asked
    signature: Path | None


class _Place(NamedTuple):
    """Where the bundle goes, and in what shape."""

    artifact: Path
    output: Path
    name: str  # of the archive, without suffix
    split: int | None  # bytes of a part
    folder: bool  # files as they are, no archive
    signature: Path | None
    force: bool


def bundle(
    artifact: Artifact | Path | str,
    kind: str,
    output: Path | None = None,
    *,
    max_size: int | None = None,
    split: int | None = None,
    archive: bool = False,
    sign: Path | None = None,
    node_modules: Path | None = None,
    force: bool = False,
    allow_quick: bool = False,
    progress: Progress = silent,
) -> Bundle:
    """Pack an artifact for `kind`: "android", "ios", "desktop" or "web".

    `output` defaults to `<artifact>-<kind>.zip` beside the artifact; `<artifact>-<kind>.parts`, a folder, when `split`
    gives the bytes of a part; for the web a folder `<artifact>-web` unless `archive` is set. `max_size` is the most
    bytes it may have. `sign` is a private key: the signature is written beside the output, with `.sig` appended.
    `node_modules` is where a web bundle takes its JavaScript from. What was proven with quick effort alone is refused
    without `allow_quick`.

    Raises Lfm2ExportError; then nothing was written, but for what an interrupted split can go on from.
    """
    opened = artifact if isinstance(artifact, Artifact) else open_artifact(Path(artifact))
    proof = opened.manifest.effort if opened.manifest.parity else None
    if proof == "quick" and not allow_quick:
        raise UsageError(
            f"{opened.folder} was proven with --effort quick; export it with full effort, or bundle with --allow-quick"
        )
    tokenizer = _check(opened, kind)
    folder = opened.folder if opened.folder.name not in ("", "..") else opened.folder.resolve()
    place = _place(folder, kind, output, split, archive, sign is not None, force)
    name, most = max(opened.manifest.shipped.items(), key=lambda item: item[1].size)
    largest = f"{name} with {most.size / 1e6:.1f} MB"
    known = opened.manifest.shipped_bytes
    check_budget(known, max_size, largest)
    check_room(Need(place.output.parent, known - resumable_bytes(place.output), "the bundle's files"))
    if split is not None:
        part_names(place.name, known, split)  # an absurd size is refused before the model runs
    with scratch_folder() as scratch:
        files = _gather(opened, kind, scratch, node_modules, progress)
        progress("answering the golden cases")
        golden = golden_cases(opened, tokenizer)
        files[GOLDEN] = (json.dumps(golden, ensure_ascii=False) + "\n").encode()
        progress("checksums")
        measured = {key: measure(files[key]) for key in sorted(files)}
        _check_unchanged(opened, WEB_MODEL if kind == "web" else "", measured)
        description = _description(opened, kind, tokenizer, measured)
        files[BUNDLE], measured = description.to_json(), {BUNDLE: measure(description.to_json()), **measured}
        signed = None if sign is None else signatures.sign(description.to_json(), sign)
        layout = plan(measured)
        size = sum(found.size for found in measured.values()) if place.folder else layout.size
        check_budget(size, max_size, largest)
        progress(f"writing {size / 1e6:.1f} MB")
        resumed = _write(place, files, measured)
    if signed is not None and place.signature is not None:
        write_bytes(place.signature, signed, force, signatures.KIND)
    parts = len(part_names(place.name, size, split)) if split is not None else 0
    texts = licences(opened.manifest)
    return Bundle(
        place.output, description, size, parts, resumed, texts, proof, opened.manifest.unproven, place.signature
    )


def _check(artifact: Artifact, kind: str) -> ChatTokenizer:
    """Refuse what `verify` would refuse, and what no app of this kind could load; returns the tokenizer."""
    manifest, folder = artifact.manifest, artifact.folder
    if kind not in KINDS:
        raise UsageError(f"cannot bundle for {kind!r:.40}; known: {', '.join(KINDS)}")
    if kind == "ios" and manifest.target in _NPU:
        raise UsageError(f"{folder}: an artifact for Qualcomm's NPU; no iPhone has one")
    if kind in ("android", "web") and manifest.target in _APPLE:
        raise UsageError(f"{folder}: an artifact for Core ML; bundle it with --for ios, or desktop for Macs")
    if kind == "web":
        web.check(artifact)
    if kind == "android" and manifest.form == "explicit" and _has_bfloat16(manifest):
        raise UsageError(
            f"{folder}: its KV cache is bfloat16, and an app has no such tensor in ExecuTorch's Android library; "
            "export with --set cache=float32, or with --form resident"
        )
    config = check_manifest(manifest, str(folder))
    check_files(Folder(folder), "", manifest, config)
    if reserved := manifest.files.keys() & {BUNDLE, GOLDEN}:
        raise UsageError(f"{folder}: holds a file {min(reserved)}; a bundle has one of its own")
    tokenizer = ChatTokenizer.load(folder, from_dict(manifest.source.config, f"{folder}: {MANIFEST}"))
    if tokenizer is None or not tokenizer.has_template:
        raise UsageError(f"{folder} has no tokenizer or chat template; an app needs both")
    return tokenizer


def _has_bfloat16(manifest: Manifest) -> bool:
    return any(spec.dtype == "bfloat16" for method in manifest.methods for spec in method.inputs)


def _place(
    folder: Path, kind: str, output: Path | None, split: int | None, archive: bool, signed: bool, force: bool
) -> _Place:
    """UsageError when something is there already that may not be replaced."""
    name, plain = f"{folder.name}-{kind}", kind == "web" and not archive and split is None
    output = output or folder.with_name(name + ("" if plain else ".zip" if split is None else ".parts"))
    signature = output.with_name(output.name + signatures.SUFFIX) if signed else None
    output.parent.mkdir(parents=True, exist_ok=True)
    if plain or split is not None:
        check_free(output, force, KIND if plain else parts.KIND, [folder])
    else:
        check_free_file(output, force, ARCHIVE)
    if signature is not None:
        check_free_file(signature, force, signatures.KIND)
    return _Place(folder, output, f"{name}.zip", split, plain, signature, force)


def _gather(
    artifact: Artifact, kind: str, scratch: Path, node_modules: Path | None, progress: Progress
) -> dict[str, Content]:
    """Every file but the golden cases, the description and what only `parity` reads, by its name in the bundle."""
    prefix = WEB_MODEL if kind == "web" else ""
    names = [*artifact.manifest.shipped, MANIFEST]
    files: dict[str, Content] = {f"{prefix}{name}": artifact.folder / name for name in names}
    if kind == "web":
        progress("collecting page and JavaScript runtime")
        files |= web.gather(artifact.manifest, scratch, node_modules)
    return files


def _check_unchanged(artifact: Artifact, prefix: str, measured: Mapping[str, Sums]) -> None:
    for name, entry in artifact.manifest.shipped.items():
        if measured[f"{prefix}{name}"].sha256 != entry.sha256:
            raise UsageError(f"{artifact.folder / name} changed while it was packed; try again")


def _description(artifact: Artifact, kind: str, tokenizer: ChatTokenizer, measured: Mapping[str, Sums]) -> Description:
    files = {name: FileEntry(size=found.size, sha256=found.sha256) for name, found in measured.items()}
    fields = {**web_fields(artifact.manifest), "versions": web.versions(artifact.manifest)} if kind == "web" else {}
    return describe(kind, artifact.manifest, tokenizer.eos_ids, files, **fields)


def _write(place: _Place, files: Mapping[str, Content], measured: Mapping[str, Sums]) -> int:
    """Returns the bytes that were there already."""
    if place.folder:
        write_folder(files, measured, place.output, place.force, [place.artifact])
        return 0
    layout = plan(measured)
    data: Iterator[memoryview] = chunks(files, measured, layout)
    if place.split is not None:
        return write_parts(data, layout.size, place.split, place.output, place.name, place.force, [place.artifact])
    write_file(data, place.output, place.force)
    return 0
