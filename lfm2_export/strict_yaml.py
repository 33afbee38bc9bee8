"""YAML that a person wrote, read with distrust: one mapping of plain values, held against a pydantic model.

Every error is one line that begins with where the text is from and names the line that is wrong.
"""

from __future__ import annotations

import json
from collections.abc import Collection
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError
from ruamel.yaml.events import AliasEvent

from lfm2_export.errors import Lfm2ExportError, field_error, nearest, one_line

_MAX_BYTES = 1 << 20
# of ruamel.yaml alone: for a scalar that is not what its tag or its looks say it lets through whatever Python's own
# conversions raise (fuzzing found nine kinds), beside its own errors
UNREADABLE = Exception

Model = TypeVar("Model", bound=BaseModel)


class Kind:
    """A kind of document: what it is called, as in "a recipe", and the error that a wrong one is."""

    def __init__(self, name: str, error: type[Lfm2ExportError]) -> None:
        self._name = name
        self._error = error

    def file(self, path: Path) -> bytes:
        """Return a file's bytes. Raises the kind's error for one too large to be such a document."""
        if path.stat().st_size > _MAX_BYTES:
            raise self._error(f"{path}: larger than {_MAX_BYTES} bytes, that is no {self._name.partition(' ')[2]}")
        return path.read_bytes()

    def mapping(self, data: bytes, where: str) -> dict[Any, Any]:
        """Return the mapping in these bytes, which still knows its lines. Raises the kind's error."""
        try:
            document = read(data.decode("utf-8"), "rt")
        except UNREADABLE as error:
            raise self._error(f"{where}: not valid YAML: {one_line(error)}") from error
        if not isinstance(document, dict):
            raise self._error(f"{where}: {self._name} is a mapping of keys to values")
        return document

    def validated(self, model: type[Model], document: dict[Any, Any], where: str, keys: Collection[str]) -> Model:
        """Return the document as a `model`; an unknown key is answered with the nearest of `keys`.

        Raises the kind's error, also for values that JSON, and so a manifest, cannot hold.
        """
        try:
            json.dumps(document, ensure_ascii=False, allow_nan=False).encode()
        except (TypeError, ValueError) as error:
            raise self._error(f"{where}: holds more than plain values: {one_line(error)}") from error
        try:
            return model.model_validate(document)
        except ValidationError as error:
            first = error.errors()[0]
            near = nearest(str(first["loc"][-1]), keys) if first["type"] == "extra_forbidden" else ""
            raise self._error(f"{where}{_line(document, first['loc'])}: {field_error(error)}{near}") from error


def read(text: str, kind: str = "safe") -> Any:
    """Return one document. Aliases are refused: a few lines of them unfold into gigabytes once they are written out.

    Raises whatever `UNREADABLE` stands for.
    """
    if "&" in text and any(isinstance(event, AliasEvent) for event in YAML(typ=kind, pure=True).parse(text)):
        raise YAMLError("aliases (*name) are not supported; write the value out")
    return YAML(typ=kind).load(text)


def _line(document: Any, location: tuple[int | str, ...]) -> str:
    """`:12` for the deepest part of `location` whose line is known (an override has none)."""
    line, node = None, document
    for part in location:
        positions = getattr(node, "lc", None)
        if positions is None or positions.data is None or part not in positions.data:
            break
        line = positions.data[part][0] + 1
        node = node[part]
    return "" if line is None else f":{line}"
