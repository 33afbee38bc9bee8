"""A small builder of ONNX models: named nodes, constants written once, weights packed only while they are saved.

An exporter that traces cannot emit onnxruntime's fused operators or a shared KV buffer; writing the graph node by
node can, and this class keeps that as readable as the model code it mirrors. Weights are given as functions, so
that at most one packed matrix is alive besides what the file format itself demands.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper

from lfm2_export.artifact.manifest import TensorSpec

OPSET = 18
IR_VERSION = 8  # the oldest that knows opset 18: old runtimes may load the file
CONTRIB = "com.microsoft"  # onnxruntime's own operators
# Above this, weights go to files beside the graph, which a runtime maps instead of reading: at the 350M shape half the
# time to load and 120 MB less memory. A small model stays one file.
EMBEDDED_BYTES = 16_000_000
CHUNK_BYTES = 2_000_000_000  # of one such file: browsers hold no buffer of 2 GiB
_PAGE = 4096  # external tensors start on a page, so that they can be memory-mapped


@dataclass(frozen=True)
class _Weight:
    """An initializer whose bytes are made when they are written."""

    name: str
    dtype: np.dtype
    shape: tuple[int, ...]
    make: Callable[[], np.ndarray]

    @property
    def size(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize

    def bytes(self) -> bytes:
        array = np.asarray(self.make(), order="C")  # not ascontiguousarray: it makes a scalar 1-d
        if array.shape != self.shape or array.dtype != self.dtype:
            raise ValueError(f"{self.name}: made {array.dtype} {array.shape}, declared {self.dtype} {self.shape}")
        return array.tobytes()


class Graph:
    """Nodes, weights, inputs and outputs in the order they were added; a value is known by its name."""

    def __init__(self, name: str, opset: int = OPSET, ir_version: int = IR_VERSION, real: str = "float32") -> None:
        self.name = name
        self.real = real  # dtype of activations and of the weights that are no integers
        self._opset, self._ir_version = opset, ir_version
        self.inputs: list[TensorSpec] = []
        self.outputs: list[TensorSpec] = []
        self._nodes: list[onnx.NodeProto] = []
        self._weights: dict[str, _Weight] = {}
        self._optional: list[TensorSpec] = []

    def op(self, kind: str, name: str, *inputs: str, domain: str = "", **attributes: Any) -> str:
        """Add a node with one output, called like the node; "" stands for an absent optional input."""
        return self.op_many(kind, name, inputs, (name,), domain, **attributes)[0]

    def op_many(
        self, kind: str, name: str, inputs: Sequence[str], outputs: Sequence[str], domain: str = "", **attributes: Any
    ) -> Sequence[str]:
        """Add a node with the given outputs; "" stands for an unused one."""
        self._nodes.append(helper.make_node(kind, inputs, outputs, name, domain=domain, **attributes))
        return outputs

    def input(self, name: str, dtype: str, *shape: int | str) -> str:
        """Declare an input; a string names a dimension that varies."""
        self.inputs.append(TensorSpec(name=name, dtype=dtype, shape=list(shape)))
        return name

    def optional_input(self, name: str, default: np.ndarray) -> str:
        """Declare an input that a caller may leave out: an initializer that is listed as an input too."""
        self._optional.append(TensorSpec(name=name, dtype=str(default.dtype), shape=list(default.shape)))
        return self.weight(name, default.dtype, default.shape, lambda: default)

    def output(self, name: str, dtype: str, *shape: int | str) -> None:
        """Declare a value as an output."""
        self.outputs.append(TensorSpec(name=name, dtype=dtype, shape=list(shape)))

    def weight(
        self, name: str, dtype: np.typing.DTypeLike, shape: Sequence[int], make: Callable[[], np.ndarray]
    ) -> str:
        """Add an initializer; `make` is called once, when the model is saved."""
        if name in self._weights:
            raise ValueError(f"initializer {name} exists already")
        self._weights[name] = _Weight(name, np.dtype(dtype), tuple(shape), make)
        return name

    def parameter(self, name: str, values: torch.Tensor, dtype: str = "") -> str:
        """Add a small parameter: stored in fp32, cast to `dtype` (default: the graph's) when the file is loaded."""
        stored = self.weight(name, np.float32, values.shape, lambda: float_array(values))
        dtype = dtype or self.real
        return stored if dtype == "float32" else self.cast(f"{name}/{dtype}", stored, dtype)

    def cast(self, name: str, value: str, dtype: str) -> str:
        """A value in another dtype, by numpy's name of it."""
        return self.op("Cast", name, value, to=_onnx_type(np.dtype(dtype)))

    def ints(self, *values: int) -> str:
        """A constant `int64` vector, shared by all its users."""
        return self.constant("ints/" + "_".join(map(str, values)), np.array(values, dtype=np.int64))

    def int(self, value: int) -> str:
        """A constant `int64` scalar, shared by all its users."""
        return self.constant(f"int/{value}", np.array(value, dtype=np.int64))

    def save(self, path: Path, reading: Path | None = None) -> list[Path]:
        """Write the model, with its weights inside or, when they are too large, in files beside it.

        Those are `<path>_data`, `<path>_data_1`, …: the names transformers.js expects. Returns all that was written.
        `reading` is a model saved in that folder before, which begins with the same weights: where they lie beside it,
        that file is read instead of one more being written.
        """
        model = self._without_weights()
        first = _data_file(reading or path, 0)
        if first.exists() if reading else sum(weight.size for weight in self._weights.values()) >= EMBEDDED_BYTES:
            chunks = _chunks(self._weights.values())
        else:
            for weight in self._weights.values():
                _embed(model.graph.initializer.add(), weight)
            path.write_bytes(model.SerializeToString())
            return [path]
        files = [_data_file(reading or path, number) for number in range(len(chunks))]
        for data, weights in zip(files, chunks, strict=True):
            with nullcontext() if reading else data.open("wb") as file:
                end = 0
                for weight in weights:
                    end = _externalize(model.graph.initializer.add(), weight, file, data.name, end)
        path.write_bytes(model.SerializeToString())
        return [path] if reading else [path, *files]

    def _without_weights(self) -> onnx.ModelProto:
        inputs = [_value_info(spec) for spec in self.inputs + self._optional]
        graph = helper.make_graph(self._nodes, self.name, inputs, [_value_info(spec) for spec in self.outputs])
        opsets = [helper.make_opsetid("", self._opset), helper.make_opsetid(CONTRIB, 1)]
        return helper.make_model(graph, opset_imports=opsets, ir_version=self._ir_version, producer_name="lfm2-export")

    def constant(self, name: str, value: np.ndarray) -> str:
        """A small constant, shared by all its users."""
        if name not in self._weights:
            self.weight(name, value.dtype, value.shape, lambda: value)
        return name


def float_array(tensor: torch.Tensor) -> np.ndarray:
    """Return a tensor's values as fp32."""
    return tensor.detach().to(torch.float32).numpy()


def _chunks(weights: Iterable[_Weight]) -> list[list[_Weight]]:
    """The weights in order, cut into files of at most `CHUNK_BYTES`; a tensor is never cut."""
    chunks: list[list[_Weight]] = [[]]
    room = CHUNK_BYTES
    for weight in weights:
        padded = weight.size + -weight.size % _PAGE
        if padded > room and chunks[-1]:
            chunks.append([])
            room = CHUNK_BYTES
        chunks[-1].append(weight)
        room -= padded
    return chunks


def _value_info(spec: TensorSpec) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(spec.name, _onnx_type(np.dtype(spec.dtype)), spec.shape)


def _onnx_type(dtype: np.dtype) -> int:
    return helper.np_dtype_to_tensor_dtype(dtype)


def _declare(tensor: TensorProto, weight: _Weight) -> None:
    tensor.name, tensor.data_type = weight.name, _onnx_type(weight.dtype)
    tensor.dims.extend(weight.shape)


def _embed(tensor: TensorProto, weight: _Weight) -> None:
    _declare(tensor, weight)
    tensor.raw_data = weight.bytes()


def _data_file(model: Path, number: int) -> Path:
    return model.with_name(f"{model.name}_data{f'_{number}' if number else ''}")


def _externalize(tensor: TensorProto, weight: _Weight, file: BinaryIO | None, location: str, end: int) -> int:
    """Append a large weight to the data file, page-aligned; a small one stays in the model, where shapes are read.

    `end` is where the file's data ends, and is returned anew; without `file` it has been written already.
    """
    if weight.size < _PAGE:
        _embed(tensor, weight)
        return end
    _declare(tensor, weight)
    start = end + -end % _PAGE
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in (("location", location), ("offset", start), ("length", weight.size)):
        tensor.external_data.add(key=key, value=str(value))
    if file is not None:
        file.write(b"\0" * (start - end))
        file.write(weight.bytes())
    return start + weight.size
