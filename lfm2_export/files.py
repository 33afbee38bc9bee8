"""Outputs that are whole or absent: written beside their target under a temporary name, then renamed."""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from lfm2_export.errors import UsageError

BUNDLE = "bundle.json"
_OURS = ("manifest.json", "config.json", BUNDLE, "parts.json")  # what every artifact, checkpoint or bundle folder holds


@contextmanager
def staged_folder(output: Path, force: bool) -> Iterator[Path]:
    """A fresh folder that becomes `output` when the block ends well and vanishes when it does not.

    Raises UsageError if `output` exists and `force` is not set; what was there is replaced only at the end.
    """
    check_free(output, force)
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        staging = Path(tempfile.mkdtemp(prefix=f".{output.name}.", dir=output.parent))
    except OSError as error:
        raise UsageError(f"cannot write {output}: {error.strerror}") from error
    try:
        yield staging
        staging.chmod(0o755)  # mkdtemp's 0700 is right only while it is temporary
        swap_in(staging, output)
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def swap_in(staging: Path, output: Path) -> None:
    """Rename a finished folder to `output`; what was there before is removed after that."""
    if output.exists():
        retired = Path(tempfile.mkdtemp(prefix=f".{output.name}.", dir=output.parent))
        output.replace(retired / output.name)
        staging.replace(output)
        shutil.rmtree(retired)
    else:
        staging.replace(output)


def write_text(path: Path, text: str) -> None:
    """Write a text file, UTF-8, through a temporary name beside it."""
    write_bytes(path, text.encode("utf-8"))


def write_bytes(path: Path, data: bytes) -> None:
    """Write a file through a temporary name beside it. UsageError when the system refuses."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        temporary.write_bytes(data)
        temporary.replace(path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise UsageError(f"cannot write {path}: {error.strerror}") from error


def check_free(output: Path, force: bool) -> None:
    """UsageError when `output` exists and may not be replaced; cheap enough to ask before any work is done."""
    if output.is_symlink() or (output.exists() and not output.is_dir()):
        raise UsageError(f"{output} exists and is not a folder; choose another --output")
    if output.exists() and not force:
        raise UsageError(f"{output} exists already; choose another --output or pass --force to replace it")
    if output.exists() and any(output.iterdir()) and not any((output / name).is_file() for name in _OURS):
        raise UsageError(f"{output} was not made by lfm2-export, so --force will not replace it; remove it yourself")


def check_free_file(path: Path, force: bool) -> None:
    """UsageError when a file cannot be written there, or exists and may not be replaced."""
    if path.is_dir() or not path.parent.is_dir():
        raise UsageError(f"cannot write {path}: {'it is a folder' if path.is_dir() else f'no folder {path.parent}'}")
    if path.exists() and not force:
        raise UsageError(f"{path} exists already; choose another file or pass --force to replace it")


def cache_root() -> Path:
    """This user's cache folder; `LFM2_EXPORT_CACHE` names another place than `~/.cache/lfm2-export`."""
    given = os.environ.get("LFM2_EXPORT_CACHE")
    return Path(given) if given else Path.home() / ".cache" / "lfm2-export"


def sha256(path: Path) -> str:
    """Hex SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
