"""JSON files of a checkpoint, which nobody trusts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from lfm2_export.errors import CheckpointError


def read_json(path: Path, limit: int) -> dict[str, Any]:
    """Return the JSON object in a file of at most `limit` bytes. Raise CheckpointError for anything else."""
    try:
        if not path.is_file():
            raise CheckpointError(f"{path}: not found; expected a JSON file")
        if (size := path.stat().st_size) > limit:
            raise CheckpointError(f"{path}: {size} bytes, expected at most {limit}")
        document = json.loads(path.read_bytes())
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: not valid JSON: {(str(error).splitlines() or ['?'])[0]}") from error
    if not isinstance(document, dict):
        raise CheckpointError(f"{path}: expected a JSON object, found {type(document).__name__}")
    return document
