"""Renames that nobody can get in between of: onto a name that is free, and of two names with each other.

Linux has them as `renameat2`, macOS as `renamex_np`. Some file systems (NFS, many in user space) refuse both flags, and
Windows has neither call. What is done there is said with each function.
"""

from __future__ import annotations

import ctypes
import errno
import os
import sys
from pathlib import Path

_LINUX, _MACOS = {"free": 1, "exchange": 2}, {"free": 4, "exchange": 2}  # RENAME_NOREPLACE/EXCL, RENAME_EXCHANGE/SWAP
_AT_FDCWD = -100  # Linux: relative paths begin at the working directory
_UNKNOWN = {errno.ENOSYS, errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP}  # the system or this file system has no such


def onto_free_name(source: Path, target: Path) -> None:
    """Rename a file or folder. FileExistsError, and both as they were, when the name is taken.

    Elsewhere: a folder by `rename`, which no system lets replace a file or a folder with something in it, and Windows
    nothing at all; a file by a second link to it, which is refused as well, and then the first one goes.
    """
    if _flagged("free", source, target):
        return
    if source.is_dir() or sys.platform == "win32":
        try:
            source.rename(target)
        except OSError as error:
            if os.path.lexists(target):
                raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(target)) from error
            raise
    else:
        os.link(source, target, follow_symlinks=False)
        source.unlink()


def exchange(one: Path, other: Path) -> bool:
    """Give two files or folders each other's names, in one step. False, and nothing done, where no such call is."""
    return _flagged("exchange", one, other)


def _flagged(flag: str, source: Path, target: Path) -> bool:
    """The rename with this flag; False where it cannot be had. Raises the system's OSError."""
    names = os.fsencode(source), os.fsencode(target)
    if sys.platform not in ("linux", "darwin"):
        return False
    library = ctypes.CDLL(None, use_errno=True)
    if hasattr(library, "renameat2"):
        status = library.renameat2(_AT_FDCWD, names[0], _AT_FDCWD, names[1], ctypes.c_uint(_LINUX[flag]))
    elif hasattr(library, "renamex_np"):
        status = library.renamex_np(*names, ctypes.c_uint(_MACOS[flag]))
    else:
        return False
    if status == 0:
        return True
    number = ctypes.get_errno()
    if number in _UNKNOWN:
        return False
    raise OSError(number, os.strerror(number), str(source), None, str(target))
