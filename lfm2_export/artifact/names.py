"""Which file names an artifact or bundle may hold: relative paths that mean the same file on every system."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable

_MAX_NAME = 1000  # UTF-8 bytes; Linux and Android allow 4096 with the folder before it
_MAX_PART = 255
_FORBIDDEN = set('<>:"|?*\\')  # what Windows refuses or reads differently
_DEVICES = {"con", "prn", "aux", "nul", *(f"{port}{i}" for port in ("com", "lpt") for i in range(1, 10))}


def unsafe(name: str) -> str | None:
    """Say what is wrong with a file's name, as the end of a sentence; None for a plain relative path with slashes."""
    parts = name.split("/")
    if not name or name.startswith("/") or ".." in parts or "\\" in name or name[1:2] == ":":
        return "leaves the folder"
    try:
        encoded = name.encode("utf-8")
    except UnicodeEncodeError:
        return "is not text"
    if len(encoded) > _MAX_NAME or any(len(part.encode()) > _MAX_PART for part in parts):
        return "is too long"
    if not name.isprintable() or not unicodedata.is_normalized("NFC", name):
        return "has characters that do not show, or several spellings"
    if any(_strange(part) for part in parts):
        return "is no plain file name"
    return None


def clash(names: Iterable[str]) -> str | None:
    """Return two names that are one file on a system without case, or a file that is also a folder; else None."""
    seen: dict[str, str] = {}
    for name in sorted(names):
        key = unicodedata.normalize("NFC", name.casefold())
        if key in seen:
            return f"{seen[key]!r:.120} and {name!r:.120} are the same name"
        seen[key] = name
    for key, name in seen.items():
        parts = key.split("/")
        for end in range(1, len(parts)):
            if (folder := "/".join(parts[:end])) in seen:
                return f"{seen[folder]!r:.120} is both a file and the folder of {name!r:.120}"
    return None


def _strange(part: str) -> bool:
    stem = part.split(".")[0].casefold()
    return part in ("", ".") or part[-1] in ". " or part[0] == " " or bool(_FORBIDDEN & set(part)) or stem in _DEVICES
