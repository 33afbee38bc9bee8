"""JSON as every other parser would read it too: UTF-8, no key twice, no NaN.

An app on a phone reads the same documents with another library. What two readers could understand differently is
refused here.
"""

from __future__ import annotations

import json
from typing import Any

from lfm2_export.errors import ArtifactError


def parse_json(data: bytes, where: str) -> Any:
    """The document; ArtifactError, one line that begins with `where`, for anything else."""
    try:
        document = json.loads(data.decode("utf-8"), object_pairs_hook=_once, parse_constant=_refuse)
        if b"\\ud" in data.lower():  # half a character, which no file can hold
            json.dumps(document, ensure_ascii=False).encode("utf-8")
        return document
    except (ValueError, RecursionError) as error:
        raise ArtifactError(f"{where}: not valid JSON: {str(error)[:200]}") from error


def check_version(document: Any, known: int, where: str) -> None:
    """Raise ArtifactError for a document of another schema version than the one this code reads."""
    version = document.get("schema_version") if isinstance(document, dict) else None
    if type(version) is not int or version != known:
        raise ArtifactError(
            f"{where}: schema version {version!r:.40}, this lfm2-export reads {known}; use the version that made it"
        )


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    document = dict(pairs)
    if len(document) != len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in keys if keys.count(key) > 1)
        raise ValueError(f"key {twice!r:.80} appears twice")
    return document


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is not a JSON number")
