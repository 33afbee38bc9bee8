"""Where this user's cache lies, and what a file's bytes are known by."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path


def cache_root() -> Path:
    """This user's cache folder: `LFM2_EXPORT_CACHE`, else `lfm2-export` in `XDG_CACHE_HOME`, else in `~/.cache`."""
    if given := os.environ.get("LFM2_EXPORT_CACHE"):
        return Path(given)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "lfm2-export"


def sha256(path: Path) -> str:
    """Hex SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
