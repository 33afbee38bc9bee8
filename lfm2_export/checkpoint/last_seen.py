"""Where on this machine a checkpoint's folder was last exported from, so that `parity` finds it again.

One small file in the cache for each digest of weights: an artifact's own bytes must not depend on where its checkpoint
lay. Each is a hint, no more; whoever follows one compares the digest.
"""

from __future__ import annotations

import contextlib
from pathlib import Path

from lfm2_export.errors import UsageError
from lfm2_export.files import ANY, cache_root, write_text


def remember(digest: str, folder: Path) -> None:
    """Note where the weights of that digest lie, and forget those that are gone. A cache that takes no file is none."""
    notes = cache_root() / "checkpoints"
    with contextlib.suppress(OSError, ValueError, UsageError):
        notes.mkdir(parents=True, exist_ok=True)
        for note in notes.iterdir():
            if note.is_file() and not Path(note.read_text(encoding="utf-8")).is_dir():
                note.unlink()
        write_text(notes / digest, str(folder.resolve()), force=True, kind=ANY)


def remembered(digest: str) -> Path | None:
    """Return the folder where the weights of that digest were last seen, if it still is one."""
    try:
        folder = Path((cache_root() / "checkpoints" / digest).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return folder if folder.is_absolute() and folder.is_dir() else None
