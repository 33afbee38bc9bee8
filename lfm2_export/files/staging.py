"""Outputs that are whole or absent: written beside their target under a temporary name, then renamed."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path

from lfm2_export.errors import UsageError
from lfm2_export.files import rename
from lfm2_export.files.replacing import Kind, check_free


@contextmanager
def staged_folder(output: Path, force: bool, kind: Kind, sources: Iterable[Path] = ()) -> Iterator[Path]:
    """A fresh folder that becomes `output` when the block ends well and vanishes when it does not.

    Raises UsageError if `output` exists and may not be replaced (see `check_free`); what was there is replaced only at
    the end. Where a folder of that name has come into being meanwhile, the work is kept beside it and UsageError says
    under which name.
    """
    sources = tuple(sources)
    check_free(output, force, kind, sources)
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        place = Path(tempfile.mkdtemp(prefix=f".{output.name}.", dir=output.parent))
        staging = place / "new"
        staging.mkdir()
    except OSError as error:
        raise UsageError(f"cannot write {output}: {error.strerror}") from error
    try:
        yield staging
        put_in_place(staging, output, force, kind, sources)
    finally:
        shutil.rmtree(place, ignore_errors=True)


def put_in_place(staging: Path, output: Path, force: bool, kind: Kind, sources: Iterable[Path] = ()) -> None:
    """Give a finished folder its name. UsageError, and the folder kept beside, where the name is not to be had."""
    try:
        check_free(output, force, kind, sources)
        if output.exists():
            _replace(staging, output)
        else:
            rename.onto_free_name(staging, output)
    except (UsageError, OSError) as error:
        kept = _keep_beside(staging, output)
        why = f"cannot write {output}: {error.strerror}" if isinstance(error, OSError) else error
        raise UsageError(f"{why}. What was made is whole and kept as {kept}; use it there or rename it") from error


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


def _replace(staging: Path, output: Path) -> None:
    """The old folder is aside, whole, until the new one has its name; where that fails it gets it back."""
    aside = staging.with_name(f"{staging.name}.old")
    if rename.exchange(staging, output):
        staging.rename(aside)
    else:
        output.rename(aside)
        try:
            rename.onto_free_name(staging, output)
        except BaseException:
            rename.onto_free_name(aside, output)
            raise
    shutil.rmtree(aside)


def _keep_beside(staging: Path, output: Path) -> Path:
    for number in count(1):
        kept = output.with_name(f"{output.name}.{number}")
        try:
            rename.onto_free_name(staging, kept)
        except FileExistsError:
            continue
        return kept
    raise AssertionError("there are more numbers than folders")
