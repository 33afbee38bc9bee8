"""Several ONNX models in one folder whose equal weights are stored once, in one file beside them."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import BinaryIO

import onnx

_PAGE = 4096  # external tensors start on a page, so that they can be memory-mapped; smaller ones stay in the model


def save_sharing(models: Mapping[str, onnx.ModelProto], folder: Path, data: str) -> None:
    """Write each model under its file name, and the weights of all of them to the file `data`."""
    places: dict[bytes, tuple[int, int]] = {}
    with (folder / data).open("wb") as file:
        for name, model in models.items():
            for tensor in model.graph.initializer:
                if len(tensor.raw_data) >= _PAGE:
                    _externalize(tensor, file, data, places)
            (folder / name).write_bytes(model.SerializeToString())


def _externalize(tensor: onnx.TensorProto, file: BinaryIO, location: str, places: dict[bytes, tuple[int, int]]) -> None:
    key = hashlib.sha256(tensor.raw_data).digest()
    if key not in places:
        file.write(b"\0" * (-file.tell() % _PAGE))
        places[key] = file.tell(), file.write(tensor.raw_data)
    offset, length = places[key]
    tensor.ClearField("raw_data")
    tensor.data_location = onnx.TensorProto.EXTERNAL
    for name, value in (("location", location), ("offset", offset), ("length", length)):
        tensor.external_data.add(key=name, value=str(value))
