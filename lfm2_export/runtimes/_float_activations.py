"""An ONNX model made to compute in fp32, so that nothing rounds but its weights: for a proof of what is stored."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from lfm2_export.files import scratch_folder

_EXPERTS = "ORT_QMOE_CPU_QNBIT_GEMM"  # what experts' kernels compute in; unset: as the operator's attribute says


@contextmanager
def in_float(path: Path) -> Iterator[Path]:
    """Yield a passing copy of the model to open a session of meanwhile: no fp16, matrices at the fp32 level."""
    with scratch_folder() as folder, _experts_in_float():
        yield _widened(path, folder / path.name)


def _widened(path: Path, copy: Path) -> Path:
    import onnx

    model = onnx.load(path)
    half, single = onnx.TensorProto.FLOAT16, onnx.TensorProto.FLOAT
    for tensor in model.graph.initializer:
        if tensor.data_type == half:
            tensor.CopyFrom(onnx.numpy_helper.from_array(_fp32(tensor), tensor.name))
    for value in (*model.graph.input, *model.graph.output):
        if value.type.tensor_type.elem_type == half:
            value.type.tensor_type.elem_type = single
    for node in model.graph.node:
        for attribute in node.attribute:
            if attribute.name == "accuracy_level":
                attribute.i = 1
            elif node.op_type == "Cast" and attribute.i == half:
                attribute.i = single
    onnx.save(model, copy, save_as_external_data=True, location=f"{path.name}_data")  # it may exceed 2 GiB
    return copy


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
