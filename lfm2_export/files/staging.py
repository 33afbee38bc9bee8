"""Outputs that are whole or absent: written in a hidden folder beside their name, on the disk before they get it."""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from lfm2_export.errors import UsageError
from lfm2_export.files import hidden, rename
from lfm2_export.files.failures import advice, told
from lfm2_export.files.interrupts import uninterrupted
from lfm2_export.files.replacing import FileKind, FolderKind, check_free, check_free_file

if sys.platform == "darwin":
    import fcntl

Check = Callable[[Path], None]


@contextmanager
def staged_folder(output: Path, force: bool, kind: FolderKind, sources: Iterable[Path] = ()) -> Iterator[Path]:
    """A fresh folder that becomes `output` when the block ends well and vanishes when it does not.

    Raises UsageError when the system refuses, and if `output` exists and may not be replaced (see `check_free`); what
    was there is replaced only at the end. Where it may no longer be replaced then, or has come into being meanwhile,
    the work is kept beside it and UsageError says under which name.
    """
    sources = tuple(sources)
    with _staged(output, lambda path: check_free(path, force, kind, sources)) as new:
        new.mkdir()
        yield new


@contextmanager
def staged_file(path: Path, force: bool, kind: FileKind) -> Iterator[Path]:
    """The name of a file to write, which becomes `path` when the block ends well; otherwise as `staged_folder`."""
    with _staged(path, lambda path: check_free_file(path, force, kind)) as new:
        yield new


@contextmanager
def resumed_folder(output: Path, force: bool, kind: FolderKind, sources: Iterable[Path] = ()) -> Iterator[Path]:
    """Stage a folder as `staged_folder` does, but leave it in `.OUTPUT.partial` when stopped; the next run gets it."""
    sources = tuple(sources)

    def check(path: Path) -> None:
        check_free(path, force, kind, sources)

    with told(output):
        check(output)
        made = _with_parents(output)
        with hidden.resumable_folder(output) as folder, told(output, folder):
            new = folder / hidden.NEW
            new.mkdir(exist_ok=True)
            yield new
            _finish(folder, output, check, made)


def write_text(path: Path, text: str, force: bool, kind: FileKind) -> None:
    """Write a text file, UTF-8, whole or not at all; see `staged_file`."""
    write_bytes(path, text.encode("utf-8"), force, kind)


def write_bytes(path: Path, data: bytes, force: bool, kind: FileKind) -> None:
    """Write a file, whole or not at all; see `staged_file`."""
    with staged_file(path, force, kind) as new:
        new.write_bytes(data)


@contextmanager
def _staged(output: Path, check: Check) -> Iterator[Path]:
    with told(output):
        check(output)
        made = _with_parents(output)
        with hidden.hidden_folder(output.parent, output.name) as folder, told(output, folder):
            yield folder / hidden.NEW
            _finish(folder, output, check, made)


def _with_parents(output: Path) -> list[Path]:
    """Make the folders above `output`; returns those that will hold a new name, outermost first."""
    missing = [parent for parent in output.parents if not parent.exists()]
    output.parent.mkdir(parents=True, exist_ok=True)
    return [output.parent, *(parent.parent for parent in missing)][::-1]


def _finish(folder: Path, output: Path, check: Check, holders: list[Path]) -> None:
    new = folder / hidden.NEW
    for parent, _, files in os.walk(new, topdown=False):
        for name in files:
            _sync(Path(parent, name))
        _sync(Path(parent))
    if new.is_file():
        _sync(new)
    with uninterrupted():
        _give_name(folder, output, check)
        for holder in holders:
            _sync(holder)


def _give_name(folder: Path, output: Path, check: Check) -> None:
    """UsageError where the name is not to be had; the work then lies beside it, whole."""
    new = folder / hidden.NEW
    try:
        check(output)
        if output.exists():
            _replace(folder, output, check)
        else:
            rename.onto_free_name(new, output)
    except (UsageError, OSError) as error:
        why = f"cannot write {output}: {advice(error)}" if isinstance(error, OSError) else error
        kept = hidden.put_beside(new, output, number=1)
        raise UsageError(f"{why}. What was made is whole and kept as {kept}; use it there or rename it") from error


def _replace(folder: Path, output: Path, check: Check) -> None:
    """The old one is aside, whole, until the new one has its name; where that fails it gets it back."""
    new, old = folder / hidden.NEW, folder / hidden.OLD / output.name
    if rename.exchange(new, output):
        try:
            check(new)  # what was there the moment before: nobody can touch it any more
            new.rename(folder / hidden.GONE)
        except BaseException:
            rename.exchange(new, output)
            raise
        return
    if new.is_file():
        new.replace(output)
        return
    old.parent.mkdir()
    output.rename(old)
    try:
        check(old)
        rename.onto_free_name(new, output)
        old.parent.rename(folder / hidden.GONE)
    except BaseException:
        if not new.exists():  # it had the name already
            rename.onto_free_name(output, new)
        rename.onto_free_name(old, output)
        raise


def _sync(path: Path) -> None:
    """Bring a file or folder onto the disk. File systems that cannot do it for a folder say EINVAL."""
    if sys.platform == "win32" and path.is_dir():
        return
    number = os.open(path, os.O_RDONLY if sys.platform != "win32" else os.O_RDWR)
    try:
        if sys.platform == "darwin":
            fcntl.fcntl(number, fcntl.F_FULLFSYNC)  # fsync leaves it in the drive's cache there
        else:
            os.fsync(number)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise OSError(error.errno, error.strerror, str(path)) from error
    finally:
        os.close(number)
