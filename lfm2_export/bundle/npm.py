"""The JavaScript that a web bundle needs, out of npm packages: pinned to the byte, never out of a CDN.

It is not part of this project's wheel (onnxruntime's WebAssembly alone is 14 MB, with WebGPU 27 MB). It comes from a
`node_modules` folder that the user names, or through the user's own npm into a cache; either way each file must have
the SHA-256 below. npm's own check, by a lock file, is of packages as downloaded: it says nothing of a folder that was
there already, and would unpack whole packages for six files.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import tarfile
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from lfm2_export.errors import MissingDependencyError, UsageError, one_line
from lfm2_export.files import FolderKind, cache_root, scratch_folder, sha256, staged_folder


class Piece(NamedTuple):
    """One file of an npm package, and where it goes in the bundle's `runtime/`."""

    package: str
    version: str
    file: str
    target: str
    sha256: str
    licence: str  # as the package states it
    imports: tuple[tuple[str, str], ...] = ()  # packages that it imports, and the bundle's file that takes their place


PIECES = (
    Piece(
        "onnxruntime-web",
        "1.30.0",
        "dist/ort.wasm.bundle.min.mjs",
        "onnxruntime.mjs",
        "11e64bd8ffe11bd1a2a2f0d6275fdfbbba7262f0b76b99b53d228a8a22ef3d90",
        "MIT",
    ),
    Piece(
        "onnxruntime-web",
        "1.30.0",
        "dist/ort-wasm-simd-threaded.wasm",
        "onnxruntime.wasm",
        "3398c10d07d229bd91b364548e130e0e51a8e5704b88c7c083ebbeb78842dee2",
        "MIT",
    ),
    Piece(
        "onnxruntime-web",
        "1.30.0",
        "dist/ort.webgpu.bundle.min.mjs",
        "onnxruntime-webgpu.mjs",
        "0730816731ce2cdfb06f273da065d4a1c7091eb9d1756a83b2916c8a89d015e2",
        "MIT",
    ),
    Piece(
        "onnxruntime-web",
        "1.30.0",
        "dist/ort-wasm-simd-threaded.asyncify.wasm",
        "onnxruntime-webgpu.wasm",
        "39f9f0894d478800487ed9f7dbe92618498db320cf55c8e3d89adff8dce658da",
        "MIT",
    ),
    Piece(
        "@huggingface/tokenizers",
        "0.2.0",
        "dist/tokenizers.min.mjs",
        "tokenizers.mjs",
        "258e46332101335ce8d95aed7745b19ac3b46d37f3e159a89cf894c2ea9b1d3a",
        "Apache-2.0",
    ),
    Piece(
        "@huggingface/jinja",
        "0.5.11",
        "dist/index.js",
        "jinja.mjs",
        "c8871915dfa68f976c11540c33fc9341c0810ebe29adb7027b8d51f2a8044936",
        "MIT",
    ),
)
PICTURES = (
    Piece(
        "@huggingface/transformers",
        "4.3.2",
        "dist/transformers.web.min.js",
        "transformers.mjs",
        "ecaf2c7dce4bcbe882d1ec6e67c2f537720e0e47169e5f7e60f2c019fba91682",
        "Apache-2.0",
        imports=(("onnxruntime-common", "../loaded_ort.js"), ("onnxruntime-web/webgpu", "../loaded_ort.js")),
    ),
)  # further ones of a page that takes pictures
_SECONDS = 600
_KIND = FolderKind("bundle", lambda _: {f"{piece.package}/{piece.file}" for piece in (*PIECES, *PICTURES)})


def copy_pieces(folder: Path, node_modules: Path | None, pieces: Sequence[Piece]) -> None:
    """Write these pieces into `folder`, an import of a package turned into one of a file of the bundle.

    Raises UsageError for a file that is missing or not the pinned one, MissingDependencyError where npm is needed and
    absent or fails.
    """
    source = node_modules or _cached(pieces)
    folder.mkdir()
    for piece in pieces:
        path = source / piece.package / piece.file
        if not path.is_file() or sha256(path) != piece.sha256:
            raise UsageError(
                f"{path}: {'not the pinned file' if path.is_file() else 'not found'}; this needs "
                f"{piece.package}@{piece.version}: npm install --ignore-scripts {piece.package}@{piece.version}"
            )
        shutil.copyfile(path, folder / piece.target)
        for package, file in piece.imports:
            text = (folder / piece.target).read_text(encoding="utf-8")
            (folder / piece.target).write_text(
                text.replace(f'from"{package}"', f'from"{file}"'), encoding="utf-8", newline="\n"
            )
    lines = {f"{p.package} {p.version}, {p.licence}, https://www.npmjs.com/package/{p.package}" for p in pieces}
    (folder / "LICENCES.txt").write_text("\n".join(sorted(lines)) + "\n", encoding="utf-8", newline="\n")


def _cached(pieces: Sequence[Piece]) -> Path:
    """A folder laid out like `node_modules`, filled by npm the first time."""
    wanted = sorted({(piece.package, piece.version) for piece in pieces})
    folder = cache_root() / "npm" / "+".join(f"{name.replace('/', '_')}-{version}" for name, version in wanted)
    if folder.is_dir():
        return folder
    npm = shutil.which("npm")
    if npm is None:
        raise MissingDependencyError(
            "a web bundle needs onnxruntime-web from npm, and npm is not installed; install Node.js, "
            "or name a node_modules folder that has it with --node-modules"
        )
    with scratch_folder() as downloads, staged_folder(folder, force=True, kind=_KIND) as staging:
        for name, version in wanted:
            _unpack(_pack(npm, f"{name}@{version}", downloads), staging / name, pieces)
    return folder


def _pack(npm: str, package: str, folder: Path) -> Path:
    """Download a package's archive. Nothing of it is run: `npm pack` of a registry package has no scripts."""
    command = [npm, "pack", "--ignore-scripts", "--json", package]
    try:
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=_SECONDS, check=True)
        return folder / json.loads(done.stdout)[0]["filename"]
    except subprocess.CalledProcessError as error:
        reason = " ".join((error.stderr or "").split())[-200:]
    except (subprocess.TimeoutExpired, ValueError, LookupError, TypeError) as error:
        reason = one_line(error)
    raise MissingDependencyError(f"npm could not fetch {package}: {reason}")


def _unpack(archive: Path, folder: Path, pieces: Sequence[Piece]) -> None:
    """The wanted members alone, written by us: an archive's own paths and links are never followed."""
    with tarfile.open(archive) as tar:
        for piece in pieces:
            if folder.parts[-len(Path(piece.package).parts) :] != Path(piece.package).parts:
                continue
            try:
                member = tar.extractfile(f"package/{piece.file}")
            except KeyError:
                member = None
            if member is None:
                raise UsageError(f"{archive.name} has no file {piece.file}")
            target = folder / piece.file
            target.parent.mkdir(parents=True, exist_ok=True)
            with member, target.open("wb") as file:
                shutil.copyfileobj(member, file)
