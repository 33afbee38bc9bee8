"""The system's errors as one line: what failed, where, and what to do about it."""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from lfm2_export.errors import UsageError, one_line

_ADVICE = {
    errno.ENOSPC: "make room there, or choose a place on another disk",
    errno.EDQUOT: "your quota there is used up; remove something or ask for more",
    errno.EIO: "the disk, or the network to it, is failing; look into the system's log before you trust it again",
    errno.EROFS: "that file system can only be read; choose another place",
    errno.EACCES: "you may not write there; choose another place or change its permissions",
    errno.EPERM: "the system does not allow it there; choose another place or change its permissions",
    errno.ENAMETOOLONG: "choose a shorter name",
    errno.EMFILE: "this process may not open more files; raise the limit (`ulimit -n`)",
    errno.ENFILE: "the system has too many files open; close other programs",
    errno.EBUSY: "something holds that place, such as a mount; choose another",
}
_IN_RUST = re.compile(r"\(os error (\d+)\)")


@contextmanager
def told(output: Path, within: Path | None = None) -> Iterator[None]:
    """An OSError of the block as UsageError about `output`; files `within` a temporary folder are not named."""
    try:
        yield
    except (ConnectionError, TimeoutError, ChildProcessError):
        raise  # nothing about files
    except OSError as error:
        where = "" if error.filename is None or _is_in(error.filename, within, output) else f"{error.filename}: "
        raise UsageError(f"cannot write {output}: {where}{advice(error)}") from error


def is_known(error: OSError) -> bool:
    """Return whether there is advice to give."""
    return error.errno in _ADVICE


def advice(error: OSError) -> str:
    """Return what the system says, and what to do about it, in one line."""
    said = error.strerror or one_line(error)
    return f"{said}; {_ADVICE[error.errno]}" if error.errno in _ADVICE else said


def out_of(error: Exception) -> OSError | None:
    """The system's error in the message of a library written in Rust, if there is one."""
    found = _IN_RUST.search(str(error))
    return OSError(int(found[1]), os.strerror(int(found[1]))) if found else None


def _is_in(name: str | bytes | int, within: Path | None, output: Path) -> bool:
    if isinstance(name, int):
        return True
    path = Path(os.fsdecode(name))
    return path == output or (within is not None and path.is_relative_to(within))
