"""What may be replaced: only what this tool made, known by what is in it, and only when the user said so.

A folder is ours when the index that our command wrote into it parses, and every file there is one that it lists.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterable
from pathlib import Path
from typing import NamedTuple

from lfm2_export.errors import Lfm2ExportError, UsageError


class FolderKind(NamedTuple):
    """A kind of folder: the command that writes it, and which files one says it holds.

    `listed` returns their names relative to the folder, its index among them, and raises Lfm2ExportError for a folder
    without an index or with one that does not parse.
    """

    command: str
    listed: Callable[[Path], Collection[str]]


class FileKind(NamedTuple):
    """A kind of file: the command that writes it, and a check that raises Lfm2ExportError for any other file."""

    command: str
    check: Callable[[Path], object]


ANY = FileKind("", lambda _: None)  # where all files are ours: the cache, a benchmark's results


def marked(command: str, mark: bytes, within: int = 0) -> FileKind:
    """The kind of file that has a mark of ours in it, which begins at most `within` bytes from its start.

    A text that quotes one of our files further down is not ours.
    """

    def check(path: Path) -> None:
        with path.open("rb") as file:
            if mark not in file.read(within + len(mark)):
                raise UsageError("it does not begin as one of those does")

    return FileKind(command, check)


def check_free(output: Path, force: bool, kind: FolderKind, sources: Iterable[Path] = ()) -> None:
    """UsageError when `output` exists and may not be replaced; cheap enough to ask before any work is done.

    `sources` are what it is made from: neither they nor a folder around one is ever replaced.
    """
    if output.is_symlink() or (output.exists() and not output.is_dir()):
        raise UsageError(f"{output} exists and is not a folder; choose another --output")
    if not output.exists():
        return
    if not force:
        raise UsageError(f"{output} exists already; choose another --output or pass --force to replace it")
    try:
        _check_replaceable(output, kind, sources)
    except OSError as error:
        raise UsageError(f"{error.filename or output}: cannot be read, so --force will not replace it") from error


def check_free_file(path: Path, force: bool, kind: FileKind) -> None:
    """UsageError when a file cannot be written there, or exists and is not to be replaced: `force` and of that kind."""
    if path.is_dir() or not path.parent.is_dir():
        raise UsageError(f"cannot write {path}: {'it is a folder' if path.is_dir() else f'no folder {path.parent}'}")
    if not os.path.lexists(path):
        return
    if not force:
        raise UsageError(f"{path} exists already; choose another file or pass --force to replace it")
    if not path.is_file():
        raise UsageError(f"{path} is no plain file; choose another")
    try:
        kind.check(path)
    except Lfm2ExportError as error:
        raise UsageError(
            f"{path} was not made by `lfm2-export {kind.command}`, so --force will not replace it; remove it "
            f"yourself ({error})"
        ) from error


def _check_replaceable(output: Path, kind: FolderKind, sources: Iterable[Path]) -> None:
    for source in sources:
        if _is_or_holds(output, source):
            raise UsageError(f"{output} is, or holds, {source}, which this is made from; choose another --output")
    if _is_or_holds(output, Path.cwd()):
        raise UsageError(f"{output} is the working directory or holds it; choose another --output")
    if os.path.lexists(output / ".git"):
        raise UsageError(f"{output} is a git repository, so --force will not replace it; choose another --output")
    found = _files_below(output)
    if not found:
        return
    try:
        listed = set(kind.listed(output))
    except Lfm2ExportError as error:
        raise UsageError(
            f"{output} was not made by `lfm2-export {kind.command}`, so --force will not replace it; remove it "
            f"yourself ({error})"
        ) from error
    if strange := set(found) - listed:
        raise UsageError(
            f"{output / min(strange)} is none of the files that `lfm2-export {kind.command}` wrote there, so --force "
            f"will not replace {output}; move it elsewhere"
        )


def _is_or_holds(folder: Path, path: Path) -> bool:
    path = path.resolve()
    return any(place.exists() and folder.samefile(place) for place in (path, *path.parents))


def _files_below(folder: Path) -> list[str]:
    """Relative names of everything that would be lost: files, links, and empty folders, which no index lists."""
    found = []
    for parent, folders, files in os.walk(folder, onerror=_raise):
        names = [*files, *(name for name in folders if Path(parent, name).is_symlink())]
        if not folders and not files and Path(parent) != folder:
            found.append(f"{Path(parent).relative_to(folder).as_posix()}/")
        for path in (Path(parent, name) for name in names):
            name = path.relative_to(folder).as_posix()
            found.append(name if path.is_file() and not path.is_symlink() else f"{name} (no plain file)")
    return found


def _raise(error: OSError) -> None:
    raise error
