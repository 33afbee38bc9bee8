"""A builder of XNNPACK delegate graphs: values, operators and weights, in the schema ExecuTorch's runtime reads.

ExecuTorch's own way here, decompositions and two dozen graph passes over every node, takes minutes for a true-size LFM2
and asks for a graph it can pattern-match; writing the graph takes milliseconds and says exactly what is meant. Layouts
are those of executorch's backends/xnnpack (serialization/schema.fbs, operators/node_visitor.py) in the pinned version.
An axis that varies with the number of tokens carries its upper bound; in a reshape it is 0, "to be inferred".
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache
from typing import Any, cast

import numpy as np
import torch
from executorch.backends.xnnpack.serialization import xnnpack_graph_schema as xnn
from executorch.backends.xnnpack.serialization.xnnpack_graph_serialize import serialize_xnnpack_binary
from executorch.exir._serialize import _dataclass as executorch_json
from torch import Tensor, nn

from lfm2_export.quantize.apply import rounds_its_input
from lfm2_export.targets.xnnpack.weights import Integers, Stored, Weights

executorch_json.get_type_hints = cache(executorch_json.get_type_hints)  # it asks once more for each value it writes
_NONE = 0xFFFFFFFF  # XNN_INVALID_VALUE_ID
_EXTERNAL_INPUT, _EXTERNAL_OUTPUT = 1, 2  # XNN_VALUE_FLAG_*
_SINGLE, _HALF = xnn.XNNDatatype.xnn_datatype_fp32, xnn.XNNDatatype.xnn_datatype_fp16
_IN_NAMED_DATA = 0xFFFFFFFFFFFFFFFF  # the offset of a constant that is found by its key


@dataclass(frozen=True)
class Extent:
    """The shape of a tensor when a call has as many tokens as it may have, and the axis that varies with their number.

    That axis is T long, or longer by a fixed number; None where no axis is.
    """

    shape: tuple[int, ...]
    varies: int | None = None


@dataclass(frozen=True)
class Value(Extent):
    """A tensor of a graph, fp32 unless it is a weight or a rounded activation."""

    id: int = _NONE


class Graph:
    """One delegate call in the making. Inputs and outputs keep the order in which they are declared."""

    def __init__(self, weights: Weights) -> None:
        self._weights = weights  # shared by all graphs of a program
        self._values: list[xnn.XValue] = []
        self._nodes: list[xnn.XNode] = []
        self._constants = [xnn.ConstantDataOffset(0, 0)]  # index 0 means "not a constant"
        self.inputs: list[Value] = []
        self.outputs: list[Value] = []
        self._rounded: dict[int, Value] = {}  # value → the same in fp16, or dynamically quantized

    @property
    def operators(self) -> int:
        """Return the number of operators."""
        return len(self._nodes)

    def input(self, extent: Extent) -> Value:
        """A tensor given by the caller."""
        value = self._tensor(extent, external=len(self.inputs), flags=_EXTERNAL_INPUT)
        self.inputs.append(value)
        return value

    def output(self, value: Value) -> None:
        """Hand a value to the caller."""
        self.outputs.append(value)

    def copy(self, x: Value) -> Value:
        """The same once more, for an input or output that shall be an output as well."""
        return self.reshape(x, *(0 if axis == x.varies else size for axis, size in enumerate(x.shape)))

    def constant(self, tensor: Tensor) -> Value:
        """An fp32 constant, stored as it lies."""
        return self._tensor(Extent(tuple(tensor.shape)), constant=self._floats(tensor))

    def add(self, a: Value, b: Value) -> Value:
        """The sum of two values, broadcast."""
        return self._binary(xnn.XNNAdd, a, b)

    def multiply(self, a: Value, b: Value) -> Value:
        """The product of two values, element by element, broadcast."""
        return self._binary(xnn.XNNMultiply, a, b)

    def subtract(self, a: Value, b: Value) -> Value:
        """The difference of two values, broadcast."""
        return self._binary(xnn.XNNSubtract, a, b)

    def divide(self, a: Value, b: Value) -> Value:
        """The quotient of two values, element by element, broadcast."""
        return self._binary(xnn.XNNDiv, a, b)

    def maximum(self, a: Value, b: Value) -> Value:
        """The larger of two values, element by element, broadcast."""
        return self._binary(xnn.XNNMaximum, a, b)

    def softmax(self, x: Value) -> Value:
        """Exponentials that sum to 1 over the last axis."""
        return self._unary(xnn.XNNSoftmax, x)

    def matmul(self, a: Value, b: Value) -> Value:
        """`a [N, rows, K] @ b [N, K, columns]`, both computed."""
        out = self._tensor(_with_channels(a, b.shape[-1]))
        return self._node(xnn.XNNBatchMatrixMultiply(a.id, b.id, out.id, 0), out)

    def sigmoid(self, x: Value) -> Value:
        """1 / (1 + exp(-x)), element by element."""
        return self._unary(xnn.XNNSigmoid, x)

    def rsqrt(self, x: Value) -> Value:
        """1 / √x, element by element."""
        return self._unary(xnn.XNNReciprocalSquareRoot, x)

    def absolute(self, x: Value) -> Value:
        """The value without its sign, element by element."""
        return self._unary(xnn.XNNAbs, x)

    def tanh(self, x: Value) -> Value:
        """The hyperbolic tangent, element by element."""
        return self._unary(xnn.XNNTanh, x)

    def gelu(self, x: Value) -> Value:
        """x times the normal distribution's share below it, exact, element by element."""
        return self._unary(xnn.XNNGelu, x)

    def cos(self, x: Value) -> Value:
        """The cosine, element by element."""
        return self._unary(xnn.XNNCos, x)

    def sin(self, x: Value) -> Value:
        """The sine, element by element."""
        return self._unary(xnn.XNNSin, x)

    def reshape(self, x: Value, *shape: int) -> Value:
        """The same elements in another shape, with 0 for the one size to be inferred: that of the varying axis."""
        inferred = math.prod(x.shape) // math.prod(size for size in shape if size)
        varies = shape.index(0) if 0 in shape and x.varies is not None else None
        out = self._tensor(Extent(tuple(size or inferred for size in shape), varies))
        return self._node(xnn.XNNStaticReshape(len(shape), list(shape), x.id, out.id, 0), out)

    def transpose(self, x: Value, *order: int) -> Value:
        """The axes in another order."""
        varies = None if x.varies is None else order.index(x.varies)
        out = self._tensor(Extent(tuple(x.shape[axis] for axis in order), varies))
        return self._node(xnn.XNNStaticTranspose(len(order), list(order), x.id, out.id, 0), out)

    def concatenate(self, a: Value, b: Value, axis: int) -> Value:
        """Two values, of which at most one varies, one behind the other along an axis."""
        shape = list(a.shape)
        shape[axis] += b.shape[axis]
        out = self._tensor(Extent(tuple(shape), b.varies if a.varies is None else a.varies))
        return self._node(xnn.XNNConcatenate2(axis, a.id, b.id, _NONE, _NONE, out.id, 0, _NONE), out)

    def linear(self, x: Value, module: nn.Module) -> Value:
        """A product with a linear module, as its weight says: fp32, fp16, or integers, on inputs rounded or not."""
        weight, bias = cast(Tensor, module.weight), cast(Tensor | None, getattr(module, "bias", None))
        if (integers := self._weights.integers(module)) is not None and rounds_its_input(module):
            return self._fully_connected(self._round(x), self._integers(integers), bias)
        if integers is not None:  # XNNPACK multiplies a bias by the scales too where inputs are fp32
            return self._plus(self._fully_connected(x, self._integers(integers)), bias)
        if weight.dtype != torch.float16:
            return self.product(x, weight, bias)
        half = self._constant_half(weight)
        product = self._half_product(x, half) if module.rounds else self._widened_product(x, half)
        return self._plus(product, bias)

    def product(self, x: Value, weight: Tensor, bias: Tensor | None = None) -> Value:
        """`x @ weight.T + bias`, all fp32."""
        return self._fully_connected(x, self.constant(weight), bias)

    def _half_product(self, x: Value, weight: Value) -> Value:
        """`x @ weight.T` in fp16 between two conversions, the first shared by all products that read x."""
        if x.id not in self._rounded:
            self._rounded[x.id] = self._converted(x, _HALF)
        out = self._tensor(_with_channels(x, weight.shape[0]), kind=_HALF)
        product = self._node(xnn.XNNFullyConnected(self._rounded[x.id].id, weight.id, _NONE, out.id, 0), out)
        return self._converted(product, _SINGLE)

    def _widened_product(self, x: Value, weight: Value) -> Value:
        """`x @ weight.T` in fp32, the weight widened in every call. With a constant bias the runtime would crash."""
        return self._fully_connected(x, self._converted(weight, _SINGLE))

    def _constant_half(self, weight: Tensor) -> Value:
        return self._tensor(Extent(tuple(weight.shape)), constant=self._floats(weight), kind=_HALF)

    def _converted(self, x: Value, kind: xnn.XNNDatatype) -> Value:
        out = self._tensor(x, kind=kind)
        return self._node(xnn.XNNConvert(x.id, out.id, 0), out)

    def depthwise(self, x: Value, kernel: Tensor, bias: Tensor | None) -> Value:
        """`x [1, 1, columns, C]`, kernel `[width, C]`: a valid convolution along the columns, channel by channel."""
        width, channels = kernel.shape
        out = self._tensor(Extent((1, 1, x.shape[2] - width + 1, channels), x.varies))
        taps = self.constant(kernel.reshape(1, 1, width, channels))
        no_padding, unit = (0, 0, 0, 0), (1, 1, 1, 1)
        node = xnn.XNNDepthwiseConv2d(
            *no_padding, 1, width, *unit, 1, 1, channels, 0, 0, x.id, taps.id, self._bias(bias), out.id, 0
        )
        return self._node(node, out)

    def serialize(self) -> bytes:
        """The delegate's payload; the weights are in the store."""
        first = len(self.inputs)
        for number, value in enumerate(self.outputs):
            tensor = self._values[value.id].xvalue_union
            tensor.external_id, tensor.flags = first + number, tensor.flags | _EXTERNAL_OUTPUT
        graph = xnn.XNNGraph(
            version="0",
            xnodes=self._nodes,
            xvalues=self._values,
            num_externs=first + len(self.outputs),
            input_ids=[value.id for value in self.inputs],
            output_ids=[value.id for value in self.outputs],
            constant_data=self._constants,
        )
        return bytes(serialize_xnnpack_binary(graph, bytearray()))

    def _unary(self, kind: type, x: Value) -> Value:
        out = self._tensor(x)
        return self._node(kind(x.id, out.id, 0), out)

    def _binary(self, kind: type, a: Value, b: Value) -> Value:
        shape = tuple(np.broadcast_shapes(a.shape, b.shape))
        varying = [len(shape) - len(x.shape) + x.varies for x in (a, b) if x.varies is not None]
        out = self._tensor(Extent(shape, varying[0] if varying else None))
        return self._node(kind(a.id, b.id, out.id, 0), out)

    def _fully_connected(self, x: Value, weight: Value, bias: Tensor | None = None) -> Value:
        out = self._tensor(_with_channels(x, weight.shape[0]))
        return self._node(xnn.XNNFullyConnected(x.id, weight.id, self._bias(bias), out.id, 0), out)

    def _plus(self, product: Value, bias: Tensor | None) -> Value:
        return product if bias is None else self.add(product, self.constant(bias))

    def _bias(self, bias: Tensor | None) -> int:
        return _NONE if bias is None else self.constant(bias).id

    def _round(self, x: Value) -> Value:
        """int8, asymmetric, one scale per token; once for all the products that read it."""
        if x.id not in self._rounded:
            kind = xnn.XNNDatatype.xnn_datatype_qdint8
            out = self._tensor(x, kind=kind, quantization=xnn.PerTokenDynamicQuant(1))
            self._rounded[x.id] = self._node(xnn.XNNConvert(x.id, out.id, 0), out)
        return self._rounded[x.id]

    def _integers(self, integers: Integers) -> Value:
        weight, at = integers.weight, self._constant(integers.scales)
        quantization: Any
        if weight.bits == 8:
            kind = xnn.XNNDatatype.xnn_datatype_qcint8
            quantization = xnn.PerChannelQuant([], 0, at, weight.values.shape[0])
        else:
            kind = xnn.XNNDatatype.xnn_datatype_qbint4
            quantization = xnn.PerChannelGroupQuant([], 0, weight.group, None, at, weight.scales.numel())
        extent, values = Extent(tuple(weight.values.shape)), self._constant(integers.values)
        return self._tensor(extent, values, kind=kind, quantization=quantization)

    def _floats(self, tensor: Tensor) -> int:
        return self._constant(self._weights.floats(tensor))

    def _constant(self, stored: Stored) -> int:
        self._constants.append(xnn.ConstantDataOffset(_IN_NAMED_DATA, stored.size, stored.key))
        return len(self._constants) - 1

    def _tensor(
        self,
        extent: Extent,
        constant: int = 0,
        external: int = _NONE,
        flags: int = 0,
        kind: xnn.XNNDatatype = _SINGLE,
        quantization: Any = None,
    ) -> Value:
        value = Value(extent.shape, extent.varies, len(self._values))
        tensor = xnn.XNNTensorValue(kind, len(value.shape), list(value.shape), constant, external, flags, value.id)
        union = tensor if quantization is None else xnn.XNNQuantizedTensorValue(tensor, quantization)
        self._values.append(xnn.XValue(union))
        return value

    def _node(self, union: Any, out: Value) -> Value:
        self._nodes.append(xnn.XNode(union, debug_handle=len(self._nodes)))
        return out


def _with_channels(x: Extent, channels: int) -> Extent:
    return Extent((*x.shape[:-1], channels), x.varies)
