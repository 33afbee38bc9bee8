"""Where on this machine a checkpoint's folder was last exported from, so that `parity` finds it again.

One small file in the cache for each digest of weights: an artifact's own bytes must not depend on where its checkpoint
lay. Each is a hint, no more; whoever follows one compares the digest.
"""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import NamedTuple

from lfm2_export.checkpoint.json_file import read_json
from lfm2_export.errors import CheckpointError, UsageError
from lfm2_export.files import ANY, cache_root, write_text

_MAX_NOTE = 1 << 16


class Place(NamedTuple):
    """A checkpoint's folder and, for a LoRA adapter, the base that was named for it."""

    folder: Path
    base: str | None


def remember(digest: str, folder: Path, base: str | None) -> None:
    """Note where the weights of that digest lie, and forget those that are gone. A cache that takes no file is none.

    `base` is what was given for a LoRA adapter; the one it names itself needs no note.
    """
    notes = cache_root() / "checkpoints"
    with contextlib.suppress(OSError, UsageError):
        notes.mkdir(parents=True, exist_ok=True)
        for note in notes.iterdir():
            if note.is_file() and _read(note) is None:
                note.unlink()
        if base is not None and Path(base).is_dir():
            base = str(Path(base).resolve())
        place = {"folder": str(folder.resolve()), "base": base}
        write_text(notes / digest, json.dumps(place), force=True, kind=ANY)


def remembered(digest: str) -> Place | None:
    """Return where the weights of that digest were last seen, if that still is a folder."""
    return _read(cache_root() / "checkpoints" / digest)


def _read(note: Path) -> Place | None:
    try:
        place = read_json(note, _MAX_NOTE)
    except CheckpointError:
        return None
    folder, base = Path(str(place.get("folder"))), place.get("base")
    return Place(folder, None if base is None else str(base)) if folder.is_absolute() and folder.is_dir() else None
