"""A builder of XNNPACK delegate graphs: values, operators and weights, in the schema ExecuTorch's runtime reads.

ExecuTorch's own way here, decompositions and two dozen graph passes over every node, takes minutes for a true-size LFM2
and asks for a graph it can pattern-match; writing the graph takes milliseconds and says exactly what is meant. Layouts
are those of executorch's backends/xnnpack (serialization/schema.fbs, operators/node_visitor.py) in the pinned version.
A dimension that varies with T carries its upper bound; in a reshape it is 0, "to be inferred".
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from executorch.backends.xnnpack.serialization import xnnpack_graph_schema as xnn
from executorch.backends.xnnpack.serialization.xnnpack_graph_serialize import serialize_xnnpack_binary
from executorch.exir._serialize._named_data_store import NamedDataStore
from torch import Tensor, nn

from lfm2_export.quantize.apply import QuantizedWeight, quantized_weight

_NONE = 0xFFFFFFFF  # XNN_INVALID_VALUE_ID
_EXTERNAL_INPUT, _EXTERNAL_OUTPUT = 1, 2  # XNN_VALUE_FLAG_*
_IN_NAMED_DATA = 0xFFFFFFFFFFFFFFFF  # the offset of a constant that is found by its key
_ALIGNMENT = 16  # of weights, in bytes


@dataclass(frozen=True)
class Value:
    """A tensor of the graph: its id and shape, fp32 unless it is a weight or a quantized activation."""

    id: int
    shape: tuple[int, ...]


class Edge(NamedTuple):
    """An input or output: its shape, and the axis that is T (at its upper bound) if one is."""

    shape: tuple[int, ...]
    varies: int | None
    id: int


class Graph:
    """One delegate call in the making. Inputs and outputs keep the order in which they are declared."""

    def __init__(self, weights: NamedDataStore) -> None:
        self._weights = weights  # shared by all graphs of a program: equal bytes are stored once
        self._values: list[xnn.XValue] = []
        self._nodes: list[xnn.XNode] = []
        self._constants = [xnn.ConstantDataOffset(0, 0)]  # index 0 means "not a constant"
        self.inputs: list[Edge] = []
        self.outputs: list[Edge] = []
        self._rounded: dict[int, Value] = {}  # value → the same in fp16, or dynamically quantized
        self.seen: dict[nn.Module, tuple[Value, Value]] = {}  # module of the decoder → what goes in, what comes out

    @property
    def operators(self) -> int:
        """How many operators it has."""
        return len(self._nodes)

    def input(self, *shape: int, varies: int | None = None) -> Value:
        """A tensor given by the caller; T is its axis `varies`."""
        value = self._tensor(shape, external=len(self.inputs), flags=_EXTERNAL_INPUT)
        self.inputs.append(Edge(shape, varies, value.id))
        return value

    def output(self, value: Value, varies: int | None = None) -> None:
        """Hand a value to the caller; T is its axis `varies`."""
        self.outputs.append(Edge(value.shape, varies, value.id))

    def copy(self, x: Value, varies: int | None) -> Value:
        """The same once more, for an input or output that shall be an output as well; T is its axis `varies`."""
        shape = (0 if axis == varies else size for axis, size in enumerate(x.shape))
        return self.reshape(x, *shape, to=x.shape)

    def constant(self, tensor: Tensor) -> Value:
        """An fp32 constant, stored as it lies."""
        return self._tensor(tuple(tensor.shape), constant=self._store(_bytes(tensor)))

    def add(self, a: Value, b: Value) -> Value:
        return self._binary(xnn.XNNAdd, a, b)

    def multiply(self, a: Value, b: Value) -> Value:
        return self._binary(xnn.XNNMultiply, a, b)

    def sigmoid(self, x: Value) -> Value:
        return self._unary(xnn.XNNSigmoid, x)

    def rsqrt(self, x: Value) -> Value:
        return self._unary(xnn.XNNReciprocalSquareRoot, x)

    def cos(self, x: Value) -> Value:
        return self._unary(xnn.XNNCos, x)

    def sin(self, x: Value) -> Value:
        return self._unary(xnn.XNNSin, x)

    def reshape(self, x: Value, *shape: int, to: tuple[int, ...]) -> Value:
        """`shape` with 0 for the one size to be inferred; `to` is the result at the upper bound."""
        out = self._tensor(to)
        return self._node(xnn.XNNStaticReshape(len(shape), list(shape), x.id, out.id, 0), out)

    def transpose(self, x: Value, *order: int) -> Value:
        out = self._tensor(tuple(x.shape[axis] for axis in order))
        return self._node(xnn.XNNStaticTranspose(len(order), list(order), x.id, out.id, 0), out)

    def concatenate(self, a: Value, b: Value, axis: int) -> Value:
        shape = list(a.shape)
        shape[axis] += b.shape[axis]
        out = self._tensor(tuple(shape))
        return self._node(xnn.XNNConcatenate2(axis, a.id, b.id, _NONE, _NONE, out.id, 0, _NONE), out)

    def linear(self, x: Value, module: nn.Module) -> Value:
        """A product with a linear module, as its weight says: fp32, fp16, or integers on dynamically rounded inputs."""
        out = self._product_with(x, module)
        self.seen[module] = x, out
        return out

    def _product_with(self, x: Value, module: nn.Module) -> Value:
        weight, bias = quantized_weight(module), getattr(module, "bias", None)
        if weight is None and cast(Tensor, module.weight).dtype == torch.float16:
            product = self._half_product(x, cast(Tensor, module.weight))
            return product if bias is None else self.add(product, self.constant(bias))
        if weight is None:
            return self.product(x, cast(Tensor, module.weight), bias)
        filter_id = self._integers(weight)
        return self._fully_connected(self._round(x), filter_id, weight.values.shape[0], bias)

    def product(self, x: Value, weight: Tensor, bias: Tensor | None = None) -> Value:
        """`x @ weight.T + bias`, all fp32."""
        return self._fully_connected(x, self.constant(weight).id, weight.shape[0], bias)

    def _half_product(self, x: Value, weight: Tensor) -> Value:
        """`x @ weight.T` in fp16 between two conversions, the first shared by all products that read x."""
        half = xnn.XNNDatatype.xnn_datatype_fp16
        if x.id not in self._rounded:
            rounded = self._tensor(x.shape, kind=half)
            self._rounded[x.id] = self._node(xnn.XNNConvert(x.id, rounded.id, 0), rounded)
        stored = self._tensor(tuple(weight.shape), constant=self._store(_bytes(weight)), kind=half)
        product = self._tensor((*x.shape[:-1], weight.shape[0]), kind=half)
        node = xnn.XNNFullyConnected(self._rounded[x.id].id, stored.id, _NONE, product.id, 0)
        self._node(node, product)
        return self._node(xnn.XNNConvert(product.id, (out := self._tensor(product.shape)).id, 0), out)

    def depthwise(self, x: Value, kernel: Tensor, bias: Tensor | None) -> Value:
        """`x [1, 1, columns, C]`, kernel `[width, C]`: a valid convolution along the columns, channel by channel."""
        width, channels = kernel.shape
        out = self._tensor((1, 1, x.shape[2] - width + 1, channels))
        taps = self.constant(kernel.reshape(1, 1, width, channels))
        no_padding, unit = (0, 0, 0, 0), (1, 1, 1, 1)
        node = xnn.XNNDepthwiseConv2d(
            *no_padding, 1, width, *unit, 1, 1, channels, 0, 0, x.id, taps.id, self._bias(bias), out.id, 0
        )
        return self._node(node, out)

    def serialize(self) -> bytes:
        """The delegate's payload; the weights are in the store."""
        first = len(self.inputs)
        for number, edge in enumerate(self.outputs):
            tensor = self._values[edge.id].xvalue_union
            tensor.external_id, tensor.flags = first + number, tensor.flags | _EXTERNAL_OUTPUT
        graph = xnn.XNNGraph(
            version="0",
            xnodes=self._nodes,
            xvalues=self._values,
            num_externs=first + len(self.outputs),
            input_ids=[edge.id for edge in self.inputs],
            output_ids=[edge.id for edge in self.outputs],
            constant_data=self._constants,
        )
        return bytes(serialize_xnnpack_binary(graph, bytearray()))

    def _unary(self, kind: type, x: Value) -> Value:
        out = self._tensor(x.shape)
        return self._node(kind(x.id, out.id, 0), out)

    def _binary(self, kind: type, a: Value, b: Value) -> Value:
        out = self._tensor(tuple(np.broadcast_shapes(a.shape, b.shape)))
        return self._node(kind(a.id, b.id, out.id, 0), out)

    def _fully_connected(self, x: Value, weight: int, rows: int, bias: Tensor | None) -> Value:
        out = self._tensor((*x.shape[:-1], rows))
        return self._node(xnn.XNNFullyConnected(x.id, weight, self._bias(bias), out.id, 0), out)

    def _bias(self, bias: Tensor | None) -> int:
        return _NONE if bias is None else self.constant(bias).id

    def _round(self, x: Value) -> Value:
        """int8, asymmetric, one scale per token; once for all the products that read it."""
        if x.id not in self._rounded:
            out = self._quantized(xnn.XNNDatatype.xnn_datatype_qdint8, x.shape, 0, xnn.PerTokenDynamicQuant(1))
            self._rounded[x.id] = self._node(xnn.XNNConvert(x.id, out.id, 0), out)
        return self._rounded[x.id]

    def _integers(self, weight: QuantizedWeight) -> int:
        rows, scales = weight.values.shape[0], weight.scales
        if weight.bits == 8:
            kind, data = xnn.XNNDatatype.xnn_datatype_qcint8, weight.values
            quantization: Any = xnn.PerChannelQuant([], 0, self._store(_bytes(scales), "scale_"), rows)
        else:
            kind, data = xnn.XNNDatatype.xnn_datatype_qbint4, nibbles(weight.values)
            stored = self._store(_bytes(scales.to(torch.bfloat16).view(torch.int16)), "scale_")
            quantization = xnn.PerChannelGroupQuant([], 0, weight.group, None, stored, scales.numel())
        return self._quantized(kind, tuple(weight.values.shape), self._store(_bytes(data)), quantization).id

    def _store(self, data: bytes, prefix: str = "") -> int:
        key = prefix + hashlib.sha256(data).hexdigest()
        self._weights.add_named_data(key, data, alignment=_ALIGNMENT)
        self._constants.append(xnn.ConstantDataOffset(_IN_NAMED_DATA, len(data), key))
        return len(self._constants) - 1

    def _tensor(
        self,
        shape: tuple[int, ...],
        constant: int = 0,
        external: int = _NONE,
        flags: int = 0,
        kind: xnn.XNNDatatype = xnn.XNNDatatype.xnn_datatype_fp32,
    ) -> Value:
        return self._define(xnn.XNNTensorValue(kind, len(shape), list(shape), constant, external, flags, self._next()))

    def _quantized(self, kind: xnn.XNNDatatype, shape: tuple[int, ...], constant: int, how: Any) -> Value:
        tensor = xnn.XNNTensorValue(kind, len(shape), list(shape), constant, _NONE, 0, self._next())
        return self._define(xnn.XNNQuantizedTensorValue(tensor, how))

    def _define(self, union: Any) -> Value:
        self._values.append(xnn.XValue(union))
        tensor = getattr(union, "tensor_value", union)
        return Value(tensor.id_out, tuple(tensor.dims))

    def _next(self) -> int:
        return len(self._values)

    def _node(self, union: Any, out: Value) -> Value:
        self._nodes.append(xnn.XNode(union, debug_handle=len(self._nodes)))
        return out


def nibbles(values: Tensor) -> Tensor:
    """int8 `[rows, columns]` in [-8, 7] → uint8 `[rows, columns/2]`: +8, the first of two values in the low half."""
    pairs = (values + 8).to(torch.uint8).unflatten(1, (-1, 2))
    return pairs[..., 1] * 16 + pairs[..., 0]


def _bytes(tensor: Tensor) -> bytes:
    return bytes(tensor.detach().contiguous().numpy().tobytes())
