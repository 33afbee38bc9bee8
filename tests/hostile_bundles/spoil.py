"""What all ways to spoil a bundle share."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

Files = dict[str, bytes]
Spoil = Callable[[Files, Path], Path]
HOSTILE: dict[str, tuple[Spoil, str]] = {}


def spoiled(name: str, files: Files, folder: Path) -> tuple[Path, str]:
    spoil, expected = HOSTILE[name]
    (place := folder / "spoiled").mkdir()
    return spoil(files, place), expected


def without(files: Files, name: str) -> Files:
    return {key: data for key, data in files.items() if key != name}
