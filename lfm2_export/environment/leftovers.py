"""What runs that were stopped have left on the disk, where this tool would look for it."""

from __future__ import annotations

import tempfile
from pathlib import Path

from lfm2_export.files import cache_root
from lfm2_export.files.hidden import Leftover, leftovers, size_of


def found() -> list[Leftover]:
    """Return what lies in the working directory and the folders in it, among temporary files and in the cache."""
    cache = cache_root()
    places = [
        Path.cwd(),
        *_folders(Path.cwd()),
        Path(tempfile.gettempdir()),
        *_folders(cache),
        *_folders(cache / "weights"),
    ]
    each = [left for place in dict.fromkeys(places) for left in leftovers(place)]
    kept = "layers of a quantization that has not ended; the same export goes on with them"
    return each + [Leftover(folder, size_of(folder), kept) for folder in _folders(cache / "weights")]


def _folders(parent: Path) -> list[Path]:
    try:
        return sorted(path for path in parent.iterdir() if path.is_dir() and not path.name.startswith("."))
    except OSError:
        return []
