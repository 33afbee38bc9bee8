"""What all ways to spoil a checkpoint share."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

Spoil = Callable[[Path], str]
HOSTILE: dict[str, Spoil] = {}

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
EMBEDDING, NORM = "model.embed_tokens.weight", "model.embedding_norm.weight"


def hostile(function: Spoil) -> Spoil:
    HOSTILE[function.__name__] = function
    return function


def edit(folder: Path, name: str = "config.json", **changes: Any) -> None:
    path = folder / name
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def link_outside(folder: Path, name: str) -> str:
    """Move a file out of the folder and leave a link in its place."""
    (folder / name).replace(folder.parent / f"outside-{name}")
    (folder / name).symlink_to(folder.parent / f"outside-{name}")
    return name
