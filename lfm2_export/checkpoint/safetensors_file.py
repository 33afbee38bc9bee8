"""The header of one safetensors file, checked to the last byte before anything else looks at the file.

The format: 8 bytes little-endian length, that much JSON, then the data. Its own limit of 100 MB on the header is kept.
"""

from __future__ import annotations

import json
import math
import struct
from pathlib import Path
from typing import Any, NamedTuple

from lfm2_export.errors import CheckpointError

BYTES = {"F32": 4, "F16": 2, "BF16": 2}  # dtypes a checkpoint may have, and their width
_MAX_HEADER = 100_000_000
_MAX_DIMENSIONS = 8  # ours have at most 3; a product over thousands of numbers would be a way to keep us busy
_MAX_NUMBER = 1 << 63


class WeightFile(NamedTuple):
    """One safetensors file: its metadata and the shapes of its tensors."""

    path: Path
    metadata: dict[str, str]
    shapes: dict[str, tuple[int, ...]]


def read_header(path: Path) -> WeightFile:
    """Raises CheckpointError, one line: truncated, too large, not JSON, or a tensor that its bytes cannot hold."""
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            length = _length(path, file.read(8), size)
            encoded = file.read(length)
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror}") from error
    try:
        header = json.loads(encoded.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: the safetensors header is not valid JSON") from error
    if not isinstance(header, dict):
        raise CheckpointError(f"{path}: the safetensors header is a {type(header).__name__}; expected a JSON object")
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict):
        raise CheckpointError(f"{path}: __metadata__ is a {type(metadata).__name__}; expected a JSON object")
    data = size - 8 - length
    shapes = {name: _checked_shape(f"{path}: tensor {name!r:.120}", entry, data) for name, entry in header.items()}
    _check_coverage(path, header, data)
    return WeightFile(path, {str(key): str(value) for key, value in metadata.items()}, shapes)


def _length(path: Path, prefix: bytes, size: int) -> int:
    if len(prefix) < 8:
        raise CheckpointError(f"{path}: {size} bytes; too short for a safetensors header")
    length: int = struct.unpack("<Q", prefix)[0]
    if length > _MAX_HEADER:
        raise CheckpointError(f"{path}: a header of {length} bytes; expected at most {_MAX_HEADER}: not safetensors?")
    if length > size - 8:
        raise CheckpointError(f"{path}: a header of {length} bytes in a file of {size} bytes; the file is truncated")
    return length


def _checked_shape(where: str, entry: Any, data: int) -> tuple[int, ...]:
    if not isinstance(entry, dict) or not {"dtype", "shape", "data_offsets"} <= entry.keys():
        raise CheckpointError(f"{where}: malformed header entry; expected dtype, shape and data_offsets")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in BYTES:
        raise CheckpointError(f"{where} has dtype {dtype!r:.80}; expected {', '.join(BYTES)}")
    if not _naturals(shape) or not _naturals(offsets) or len(offsets) != 2 or len(shape) > _MAX_DIMENSIONS:
        raise CheckpointError(f"{where}: shape {shape!r:.80} or data_offsets {offsets!r:.80} are not whole numbers")
    start, end = offsets
    if end > data:
        raise CheckpointError(f"{where} ends at byte {end} of {data} bytes of data; the file is truncated")
    if end - start != math.prod(shape) * BYTES[dtype]:
        raise CheckpointError(f"{where}: {dtype} {shape} does not fit data_offsets {offsets}")
    return tuple(shape)


def _check_coverage(path: Path, header: dict[str, Any], data: int) -> None:
    """The format wants the data covered without gaps or overlaps; an overlap is how one tensor can hide in another."""
    position = 0
    for start, end in sorted(entry["data_offsets"] for entry in header.values()):
        if start != position:
            raise CheckpointError(f"{path}: tensors overlap or leave a gap at byte {position} of the data")
        position = end
    if position != data:
        raise CheckpointError(f"{path}: {data - position} bytes follow the last tensor; expected none")


def _naturals(value: Any) -> bool:
    return isinstance(value, list) and all(type(item) is int and 0 <= item < _MAX_NUMBER for item in value)
