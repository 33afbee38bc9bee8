"""Reading safetensors without trusting them: headers are checked against the config before a byte is mapped.

Tensors come memory-mapped, one at a time, in the dtype they are stored in. The header's layout is that of the safetensors
format: 8 bytes little-endian length, JSON, then the data; its own limit of 100 MB on the header is kept.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from lfm2_export.checkpoint.config import LFM2Config, read_json
from lfm2_export.checkpoint.layout import EMBEDDING, HEAD, expected_tensors
from lfm2_export.errors import CheckpointError

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
_MAX_HEADER = 100_000_000
_MAX_INDEX = 64 << 20
_BYTES = {"F32": 4, "F16": 2, "BF16": 2}


class WeightFile(NamedTuple):
    """One safetensors file: its metadata and the shapes of its tensors."""

    path: Path
    metadata: dict[str, str]
    shapes: dict[str, tuple[int, ...]]


class Weights:
    """The tensors of a checkpoint folder, checked against its config; nothing is read before `tensors()`."""

    def __init__(self, folder: Path, config: LFM2Config) -> None:
        """Raises CheckpointError, one line that names file, tensor and expectation."""
        self.files = [_read_header(path) for path in _weight_files(folder)]
        self.home: dict[str, WeightFile] = {}
        for file in self.files:
            for name in file.shapes:
                if name in self.home:
                    raise CheckpointError(f"{file.path}: tensor {name} is also in {self.home[name].path.name}")
                self.home[name] = file
        self._expected = expected_tensors(config)
        self._check_names(folder)

    @property
    def metadata(self) -> dict[str, str]:
        """Free-form strings of the headers, the first file's winning."""
        merged: dict[str, str] = {}
        for file in reversed(self.files):
            merged.update(file.metadata)
        return merged

    def tensors(self) -> Iterator[tuple[str, Tensor]]:
        """Every tensor in the order of `expected_tensors`, memory-mapped, in its stored dtype.

        Raises CheckpointError for NaN or infinite values, naming file and tensor.
        """
        for name in self._expected:
            path = self.home[name].path
            tensor = _read(path, name)
            if not torch.isfinite(tensor).all():
                raise CheckpointError(f"{path}: tensor {name} holds NaN or infinite values")
            if name == EMBEDDING and HEAD not in self._expected and HEAD in self.home:
                self._check_tied(tensor)
            yield name, tensor

    def _check_names(self, folder: Path) -> None:
        allowed = {**self._expected}
        allowed.setdefault(HEAD, self._expected[EMBEDDING])  # some tied checkpoints store the head anyway
        for name, shape in self._expected.items():
            if name not in self.home:
                raise CheckpointError(f"{folder}: tensor {name} is missing; expected shape {list(shape)}")
        for name, file in self.home.items():
            if name not in allowed:
                raise CheckpointError(f"{file.path}: tensor {name} does not belong to the model that config.json describes")
            if file.shapes[name] != allowed[name]:
                found, wanted = list(file.shapes[name]), list(allowed[name])
                raise CheckpointError(f"{file.path}: tensor {name} has shape {found}; config.json says {wanted}")

    def _check_tied(self, embedding: Tensor) -> None:
        path = self.home[HEAD].path
        if not torch.equal(_read(path, HEAD), embedding):
            raise CheckpointError(
                f"{path}: {HEAD} differs from {EMBEDDING} although config.json ties them; set tie_word_embeddings false"
            )


def _read(path: Path, name: str) -> Tensor:
    try:
        with safe_open(path, framework="pt") as file:
            return file.get_tensor(name)
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path}: tensor {name}: {str(error).splitlines()[0]}") from error


def _weight_files(folder: Path) -> list[Path]:
    if (folder / INDEX).is_file():
        index = read_json(folder / INDEX, _MAX_INDEX)
        names = index.get("weight_map")
        if not isinstance(names, dict) or not names or not all(isinstance(v, str) for v in names.values()):
            raise CheckpointError(f"{folder / INDEX}: weight_map: expected an object of tensor name → file name")
        shards = [inside(folder, name, INDEX) for name in sorted(set(names.values()))]
        for shard in shards:
            if not shard.is_file():
                raise CheckpointError(f"{shard}: named by {INDEX} but missing")
        return shards
    if (folder / SINGLE).is_file():
        return [inside(folder, SINGLE, folder.name)]
    pickled = next((path.name for path in sorted(folder.glob("*.bin"))), None)
    if pickled is not None:
        raise CheckpointError(f"{folder / pickled}: pickled weights are never loaded; convert them to safetensors")
    raise CheckpointError(f"{folder}: neither {SINGLE} nor {INDEX} found")


def inside(folder: Path, name: str, named_by: str) -> Path:
    """`folder/name`, unless it leaves the folder. The hub's cache keeps its files as links into its own `blobs/`."""
    if Path(name).is_absolute() or ".." in Path(name).parts or "\\" in name:
        raise CheckpointError(f"{folder / named_by}: file name {name!r} leaves the folder")
    target = (folder / name).resolve()
    roots = [folder.resolve()]
    if folder.parent.name == "snapshots":
        roots.append((folder.parent.parent / "blobs").resolve())
    if not any(target.is_relative_to(root) for root in roots):
        raise CheckpointError(f"{folder / name}: a link that leaves the folder")
    return folder / name


def _read_header(path: Path) -> WeightFile:
    size = path.stat().st_size
    with path.open("rb") as file:
        prefix = file.read(8)
        if len(prefix) < 8:
            raise CheckpointError(f"{path}: {size} bytes, too short for a safetensors header")
        (length,) = struct.unpack("<Q", prefix)
        if length > min(_MAX_HEADER, size - 8):
            raise CheckpointError(f"{path}: header of {length} bytes in a file of {size}; truncated or not safetensors")
        try:
            header = json.loads(file.read(length))
        except (ValueError, RecursionError) as error:
            raise CheckpointError(f"{path}: the safetensors header is not valid JSON") from error
    if not isinstance(header, dict):
        raise CheckpointError(f"{path}: the safetensors header is not an object")
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict):
        raise CheckpointError(f"{path}: __metadata__ is not an object")
    data = size - 8 - length
    shapes = {name: _checked_shape(path, name, entry, data) for name, entry in header.items()}
    _check_coverage(path, header, data)
    return WeightFile(path, {str(key): str(value) for key, value in metadata.items()}, shapes)


def _checked_shape(path: Path, name: str, entry: Any, data: int) -> tuple[int, ...]:
    if not isinstance(entry, dict) or not {"dtype", "shape", "data_offsets"} <= entry.keys():
        raise CheckpointError(f"{path}: tensor {name}: malformed header entry")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if dtype not in _BYTES:
        raise CheckpointError(f"{path}: tensor {name} has dtype {dtype!r}; expected {', '.join(_BYTES)}")
    if not _naturals(shape) or not _naturals(offsets) or len(offsets) != 2:
        raise CheckpointError(f"{path}: tensor {name}: shape or offsets are not lists of whole numbers")
    start, end = offsets
    if not start <= end <= data or end - start != math.prod(shape) * _BYTES[dtype]:
        raise CheckpointError(
            f"{path}: tensor {name}: bytes {start} to {end} of {data} do not hold {dtype} {shape}; truncated?"
        )
    return tuple(shape)


def _check_coverage(path: Path, header: dict[str, Any], data: int) -> None:
    """The format wants the data covered without gaps or overlaps; an overlap is how one tensor can hide in another."""
    position = 0
    for start, end in sorted(entry["data_offsets"] for entry in header.values()):
        if start != position:
            raise CheckpointError(f"{path}: tensors overlap or leave a gap at byte {position} of the data")
        position = end
    if position != data:
        raise CheckpointError(f"{path}: {data - position} bytes follow the last tensor")


def _naturals(value: Any) -> bool:
    return isinstance(value, list) and all(type(item) is int and item >= 0 for item in value)
