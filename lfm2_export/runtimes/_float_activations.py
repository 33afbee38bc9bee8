"""An ONNX model made to compute in fp32, so that nothing rounds but its weights: for a proof of what is stored."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from lfm2_export.files import scratch_folder

_EXPERTS = "ORT_QMOE_CPU_QNBIT_GEMM"  # what experts' kernels compute in; unset: as the operator's attribute says
_ZERO = 128  # of 8-bit weights, as `MatMulNBits` has it where no other is stored
_ROWS = 1024  # of a matrix turned to fp32 at a time


@contextmanager
def in_float(path: Path, int8_once: bool) -> Iterator[Path]:
    """Yield a passing copy of the model to open a session of meanwhile: no fp16, matrices at the fp32 level.

    With `int8_once` the stored int8 matrices are fp32 in the copy: for a library whose kernel turns the whole matrix to
    fp32 in every call.
    """
    with scratch_folder() as folder, _experts_in_float():
        yield _widened(path, folder / path.name, int8_once)


def _widened(path: Path, copy: Path, int8_once: bool) -> Path:
    import onnx

    model = onnx.load(path)
    half, single = onnx.TensorProto.FLOAT16, onnx.TensorProto.FLOAT
    for tensor in model.graph.initializer:
        if tensor.data_type == half:
            tensor.CopyFrom(onnx.numpy_helper.from_array(_fp32(tensor), tensor.name))
    for value in (*model.graph.input, *model.graph.output):
        if value.type.tensor_type.elem_type == half:
            value.type.tensor_type.elem_type = single
    if int8_once:
        with copy.with_name(f"{path.name}_int8").open("wb") as file:
            _int8_to_fp32(model.graph, file)
    for node in model.graph.node:
        for attribute in node.attribute:
            if attribute.name == "accuracy_level":
                attribute.i = 1
            elif node.op_type == "Cast" and attribute.i == half:
                attribute.i = single
    onnx.save(model, copy, save_as_external_data=True, location=f"{path.name}_data")  # it may exceed 2 GiB
    return copy


def _int8_to_fp32(graph: Any, file: BinaryIO) -> None:
    """Multiply by fp32 matrices where it was by stored int8 ones; the new matrices go to the file."""
    from onnx import helper

    stored = {tensor.name: tensor for tensor in graph.initializer}
    for node in graph.node:
        if node.op_type != "MatMulNBits" or len(node.input) != 3 or _setting(node, "bits") != 8:
            continue
        x, packed, scales = node.input
        matrix = f"{packed}/fp32"
        if matrix not in stored:
            stored[matrix] = graph.initializer.add(name=matrix)
            _store(stored[matrix], _dequantized(stored[packed], stored[scales]), file)
        node.CopyFrom(helper.make_node("MatMul", [x, matrix], list(node.output), node.name))
    read = {name for node in graph.node for name in node.input}
    for place in reversed(range(len(graph.initializer))):
        if graph.initializer[place].name not in read:
            del graph.initializer[place]


def _dequantized(packed: Any, scales: Any) -> np.ndarray:
    """`[rows, blocks, group] uint8` and a scale for each block → the matrix as `MatMul` takes it, `[columns, rows]`."""
    from onnx import numpy_helper

    blocks = numpy_helper.to_array(packed)
    factors = numpy_helper.to_array(scales).reshape(*blocks.shape[:2], 1)
    rows, count, group = blocks.shape
    matrix = np.empty((count * group, rows), dtype=np.float32)
    for start in range(0, rows, _ROWS):
        part = (blocks[start : start + _ROWS].astype(np.float32) - _ZERO) * factors[start : start + _ROWS]
        matrix[:, start : start + _ROWS] = part.reshape(len(part), -1).T
    return matrix


def _store(tensor: Any, values: np.ndarray, file: BinaryIO) -> None:
    """Describe a tensor whose values lie in the file, where they are written."""
    tensor.data_type, tensor.data_location = tensor.FLOAT, tensor.EXTERNAL
    tensor.dims.extend(values.shape)
    place = {"location": Path(file.name).name, "offset": file.tell(), "length": values.nbytes}
    for key, value in place.items():
        tensor.external_data.add(key=key, value=str(value))
    values.tofile(file)


def _setting(node: Any, name: str) -> int | None:
    return next((int(attribute.i) for attribute in node.attribute if attribute.name == name), None)


@contextmanager
def _experts_in_float() -> Iterator[None]:
    """Let sessions opened meanwhile multiply int8 experts in fp32: by no attribute of `QMoE`, only by a variable."""
    before = os.environ.get(_EXPERTS)
    os.environ[_EXPERTS] = "fp32"
    try:
        yield
    finally:
        os.environ.pop(_EXPERTS)
        os.environ.update({} if before is None else {_EXPERTS: before})


def _fp32(tensor: Any) -> np.ndarray:
    from onnx import numpy_helper

    return numpy_helper.to_array(tensor).astype(np.float32)
