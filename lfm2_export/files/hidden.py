"""Hidden folders, where a run writes what has no name yet. Each is locked for as long as its run lives.

A killed run leaves its folder but never its lock: the system drops that with the process. So a folder whose lock is
free is nobody's, and the next run beside it removes it. Where the system or the file system has no such locks, nothing
is known of the owner and nothing is removed.
"""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

from lfm2_export.errors import UsageError
from lfm2_export.files import rename
from lfm2_export.files.interrupts import uninterrupted

if sys.platform != "win32":
    import fcntl

SUFFIX = ".lfm2-export"
PARTIAL = ".partial"  # of one that is kept on purpose, for a later run to go on
NEW = "new"  # in the folder: what is being written …
OLD = "old"  # … what it replaces, by its name, until the new one stands …
GONE = "gone"  # … and from then on …
_LOCK = "lock"  # … and what is locked
_MAX_NAME = 150  # bytes; file systems allow 255, and there is more to the name


class Leftover(NamedTuple):
    """A hidden folder that stands around."""

    path: Path
    size: int  # bytes
    state: str


@contextmanager
def hidden_folder(parent: Path, name: str) -> Iterator[Path]:
    """A new hidden folder in `parent`, gone when the block ends. What killed runs left beside it goes as well."""
    sweep(parent)
    made: tuple[Path, int | None] | None = None
    try:
        with uninterrupted():
            made = _made(parent, name)
        yield made[0]
    finally:
        with uninterrupted():
            if made is not None:
                _clear(made[0])
                _let_go(made[1])


def resumable_bytes(output: Path) -> int:
    """Bytes that an earlier run left for the one to go on."""
    return size_of(_resumable(output))


@contextmanager
def resumable_folder(output: Path) -> Iterator[Path]:
    """The hidden folder `.OUTPUT.partial`, which stays when the block fails; what an earlier run left is in it.

    UsageError when another run is at work in it, or when it is not ours.
    """
    folder = _resumable(output)
    if folder.is_symlink() or (folder.exists() and {path.name for path in folder.iterdir()} - {NEW, OLD, GONE, _LOCK}):
        raise UsageError(f"{folder} was not made by lfm2-export and is in the way; move it elsewhere")
    sweep(output.parent)
    folder.mkdir(exist_ok=True)
    try:
        lock = _locked(folder / _LOCK, create=True)
    except BlockingIOError as error:
        raise UsageError(f"{output} is being written by another run; wait for it") from error
    try:
        _empty(folder, but=NEW)
        yield folder
    finally:
        if not (folder / NEW).exists():  # it has its name
            with uninterrupted():
                _clear(folder)
        _let_go(lock)


def _resumable(output: Path) -> Path:
    return output.with_name(f".{output.name}{PARTIAL}")


@contextmanager
def scratch_folder() -> Iterator[Path]:
    """A folder for what is needed only meanwhile, where the system keeps such."""
    with hidden_folder(Path(tempfile.gettempdir()), "scratch") as folder:
        (folder / NEW).mkdir()
        yield folder / NEW


def sweep(parent: Path) -> None:
    """Remove what killed runs left in a folder; what they were about to replace gets its name back first."""
    for folder in _hidden(parent, SUFFIX):
        with suppress(OSError), uninterrupted():
            if not (folder / _LOCK).exists():
                folder.rmdir()  # killed before it was locked; refused if there is anything in it
                continue
            lock = _locked(folder / _LOCK, create=False)
            if lock is not None:
                _clear(folder)
                _let_go(lock)


def leftovers(parent: Path) -> list[Leftover]:
    """Return what stands around in a folder, whether a run is at work in it or not."""
    found = []
    for folder in (*_hidden(parent, SUFFIX), *_hidden(parent, PARTIAL)):
        if not (folder / _LOCK).is_file():
            continue
        found.append(Leftover(folder, size_of(folder), _state(folder)))
    return found


def size_of(folder: Path) -> int:
    """Bytes of all files below; what vanishes meanwhile does not count."""
    size = 0
    for parent, _, names in os.walk(folder):
        for name in names:
            with suppress(OSError):
                size += Path(parent, name).lstat().st_size
    return size


def _state(folder: Path) -> str:
    try:
        lock = _locked(folder / _LOCK, create=False)
    except BlockingIOError:
        return "a run is writing it"
    except OSError as error:
        return f"cannot be looked into: {error.strerror}"
    _let_go(lock)
    if folder.name.endswith(PARTIAL):
        return "of a bundle that was stopped; the same command goes on with it"
    return "left by a run that was killed; the next run beside it removes it"


def _made(parent: Path, name: str) -> tuple[Path, int | None]:
    prefix = f".{os.fsencode(name)[:_MAX_NAME].decode(errors='ignore')}."
    while True:
        folder = Path(tempfile.mkdtemp(prefix=prefix, suffix=SUFFIX, dir=parent))
        try:
            lock = _locked(folder / _LOCK, create=True)
            if lock is None or os.path.samestat(os.fstat(lock), (folder / _LOCK).stat()):
                return folder, lock
            os.close(lock)
        except (BlockingIOError, FileNotFoundError):
            continue  # another run took it for a leftover before it was locked
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            raise


def _locked(path: Path, create: bool) -> int | None:
    """A descriptor that holds the lock; None where there are no locks, and then no file is left that looks like one.

    BlockingIOError when somebody else holds it.
    """
    number = os.open(path, os.O_RDWR | (os.O_CREAT if create else 0), 0o600)
    try:
        if sys.platform != "win32":
            fcntl.flock(number, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return number
    except BlockingIOError:
        os.close(number)
        raise
    except OSError:
        pass
    os.close(number)
    if create:
        path.unlink()
    return None


def _let_go(lock: int | None) -> None:
    if lock is not None:
        os.close(lock)


def _clear(folder: Path) -> None:
    """Remove a folder of our own, the lock last."""
    with suppress(OSError):
        _empty(folder)
        (folder / _LOCK).unlink(missing_ok=True)
        folder.rmdir()


def _empty(folder: Path, but: str = "") -> None:
    """Remove what is in it besides the lock; what was to be replaced and was not gets its name back first."""
    if (folder / OLD).exists():
        for old in (folder / OLD).iterdir():
            put_beside(old, folder.parent / old.name)
    for entry in folder.iterdir():
        if entry.name not in (_LOCK, but):
            _remove(entry)


def put_beside(source: Path, target: Path, number: int = 0) -> Path:
    """Rename to the name, or if it is taken to the next free one like it, from that `number` on; returns which."""
    while True:
        stem, suffix = (target.name, "") if source.is_dir() else (target.stem, target.suffix)
        name = target.with_name(f"{stem}.{number}{suffix}") if number else target
        try:
            rename.onto_free_name(source, name)
        except FileExistsError:
            number += 1
            continue
        return name


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink()


def _hidden(parent: Path, suffix: str) -> list[Path]:
    """This user's own folders of that kind; links are none."""
    try:
        with os.scandir(parent) as entries:
            named = [entry for entry in entries if entry.name.startswith(".") and entry.name.endswith(suffix)]
            return [Path(entry.path) for entry in named if entry.is_dir(follow_symlinks=False) and _is_own(entry)]
    except OSError:
        return []


def _is_own(entry: os.DirEntry[str]) -> bool:
    return sys.platform == "win32" or entry.stat(follow_symlinks=False).st_uid == os.geteuid()
