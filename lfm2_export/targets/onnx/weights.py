"""Matrices as ONNX operators: float ones as MatMul and Gather, quantized ones in onnxruntime's packing.

Integers and scales are the ones the eager quantized model computes with; nothing is re-quantized here. fp16 weights
in a graph that computes in fp32 are cast when the file is loaded. Matrices that read the same input and are quantized
alike become one product: its input is read, and rounded, once.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import nn

from lfm2_export.quantize.apply import BlockActivationLinear, HalfLinear, QuantizedWeight, quantized_weight
from lfm2_export.targets.onnx_graph import CONTRIB, Graph, float_array

Linear = nn.Linear | BlockActivationLinear | HalfLinear

_AS_GIVEN, _FLOAT, _INT8 = 0, 1, 4  # MatMulNBits' accuracy levels: what activations are computed in


def pack(values: np.ndarray, bits: int, group: int) -> np.ndarray:
    """Signed integers `[rows, columns] int8` → MatMulNBits' `[rows, columns/group, group·bits/8] uint8`.

    Stored unsigned around the operator's default zero point 2^(bits-1); of two 4-bit values in a byte the first
    is the low half. Layout: onnxruntime's ContribOperators.md, MatMulNBits, input B.
    """
    unsigned = (values + np.int8(8)).view(np.uint8) if bits == 4 else values.view(np.uint8) ^ np.uint8(128)
    packed = unsigned[:, 0::2] | unsigned[:, 1::2] << 4 if bits == 4 else unsigned
    return packed.reshape(values.shape[0], values.shape[1] // group, -1)


def linear(graph: Graph, path: str, module: Linear, x: str) -> str:
    """Write `x [..., columns]` → `[..., rows]` through a linear module of the decoder, bias included."""
    return _stacked(graph, path, [module], x)


def linears(graph: Graph, within: str, modules: Mapping[str, Linear], x: str) -> tuple[str, ...]:
    """Write `x` through several modules, by path: as one product where they can be stacked row upon row."""
    if len({_kind(module) for module in modules.values()}) > 1:
        return tuple(linear(graph, path, module, x) for path, module in modules.items())
    path = f"{within}.{'+'.join(each.rpartition('.')[2] for each in modules)}"
    product = _stacked(graph, path, list(modules.values()), x)
    rows = graph.ints(*(module.weight.shape[0] for module in modules.values()))
    return tuple(graph.op_many("Split", f"{path}/Split", (product, rows), tuple(modules), axis=-1))


def linear_of_table(graph: Graph, path: str, module: Linear, table: str, embedding: nn.Embedding, x: str) -> str | None:
    """Write a linear module that reads the stored matrix of an embedding; None where it has another one.

    `table` is the embedding's path, under which it has been written.
    """
    grid, other = quantized_weight(module), quantized_weight(embedding)
    if module.bias is not None:
        return None
    if grid is not None and other is not None and _same(grid, other):
        return _matmul_nbits(graph, path, module, [grid], x, *_grid_names(table, grid))
    if grid is None and other is None and torch.equal(module.weight, embedding.weight):
        turned = graph.op("Transpose", f"{path}/Transpose", f"{table}.weight", perm=[1, 0])
        return graph.op("MatMul", f"{path}/MatMul", x, turned)
    return None


def _kind(module: Linear) -> tuple[object, ...]:
    """What two modules must agree in to be one product."""
    grid = quantized_weight(module)
    return type(module), grid and (grid.bits, grid.group), module.bias is None


def _stacked(graph: Graph, path: str, modules: Sequence[Linear], x: str) -> str:
    grids = [grid for module in modules if (grid := quantized_weight(module)) is not None]
    if grids:
        product = _matmul_nbits(graph, path, modules[0], grids, x, *_add_grid(graph, path, grids))
    else:
        rows, columns = sum(module.weight.shape[0] for module in modules), modules[0].weight.shape[1]
        stack = [module.weight for module in modules]
        stored = "float16" if isinstance(modules[0], HalfLinear) else graph.real
        name = graph.weight(f"{path}.weight", stored, (columns, rows), lambda: _stack(stack, stored).transpose())
        if stored != graph.real:
            name = graph.cast(f"{path}.weight/{graph.real}", name, graph.real)
        product = graph.op("MatMul", f"{path}/MatMul", x, name)
    biases = [module.bias for module in modules if module.bias is not None]
    if not biases:
        return product
    return graph.op("Add", f"{path}/Add", product, graph.parameter(f"{path}.bias", torch.cat(biases)))


def embedding(graph: Graph, path: str, module: nn.Embedding, tokens: str, fused: bool = False) -> str:
    """Write `tokens [B, T]` → `[B, T, hidden]`.

    A quantized table is read with plain operators, which every runtime has and which give the same bits, or, when
    `fused`, by GatherBlockQuantized, which the WebAssembly build inside transformers.js lacks.
    """
    grid = quantized_weight(module)
    if grid is None:
        weight = module.weight
        table = graph.weight(f"{path}.weight", graph.real, weight.shape, lambda: _stack([weight], graph.real))
        return graph.op("Gather", f"{path}/Gather", table, tokens, axis=0)
    packed, scales = _add_grid(graph, path, [grid])
    if not fused:
        return _dequantized_rows(graph, path, grid, packed, scales, tokens)
    flat = graph.op("Reshape", f"{path}/Reshape", packed, graph.ints(grid.values.shape[0], -1))
    return graph.op(
        "GatherBlockQuantized",
        f"{path}/GatherBlockQuantized",
        *(flat, tokens, scales),
        domain=CONTRIB,
        bits=grid.bits,
        block_size=grid.group,
        gather_axis=0,
        quantize_axis=1,
    )


def _dequantized_rows(graph: Graph, path: str, grid: QuantizedWeight, packed: str, scales: str, rows: str) -> str:
    """`(value - zero point) · scale` of some rows of a packed matrix: `rows [B, T]` → `[B, T, columns]`."""
    taken = graph.op("Gather", f"{path}/packed", packed, rows, axis=0)  # [B, T, blocks, bytes]
    if grid.bits == 4:
        fifteen = graph.weight(f"{path}/fifteen", np.uint8, (), lambda: np.array(15, dtype=np.uint8))
        four = graph.weight(f"{path}/four", np.uint8, (), lambda: np.array(4, dtype=np.uint8))
        low = graph.op("BitwiseAnd", f"{path}/low", taken, fifteen)
        high = graph.op("BitShift", f"{path}/high", taken, four, direction="RIGHT")
        halves = (
            graph.op("Unsqueeze", f"{path}/{name}_last", half, graph.ints(4))
            for name, half in (("low", low), ("high", high))
        )
        pairs = graph.op("Concat", f"{path}/pairs", *halves, axis=4)
        taken = graph.op("Reshape", f"{path}/unpacked", pairs, graph.ints(0, 0, 0, -1))
    unsigned = graph.cast(f"{path}/real", taken, graph.real)
    zero = graph.weight(f"{path}/zero", graph.real, (), lambda: np.array(2 ** (grid.bits - 1), dtype=graph.real))
    signed = graph.op("Sub", f"{path}/signed", unsigned, zero)
    taken_scales = graph.op("Gather", f"{path}/row_scales", scales, rows, axis=0)
    scaled = graph.op(
        "Mul", f"{path}/scaled", signed, graph.op("Unsqueeze", f"{path}/scale", taken_scales, graph.ints(3))
    )
    return graph.op("Reshape", f"{path}/rows", scaled, graph.ints(0, 0, -1))


def _add_grid(graph: Graph, path: str, grids: Sequence[QuantizedWeight]) -> tuple[str, str]:
    """Store the matrices row upon row, packed, and their scales beside them."""
    bits, group = grids[0].bits, grids[0].group
    rows, blocks = sum(grid.values.shape[0] for grid in grids), grids[0].values.shape[1] // group
    packed, scales = _grid_names(path, grids[0])

    def all_packed() -> np.ndarray:
        return np.concatenate([pack(grid.values.numpy(), bits, group) for grid in grids])

    graph.weight(packed, np.uint8, (rows, blocks, group * bits // 8), all_packed)
    graph.weight(scales, graph.real, (rows, blocks), lambda: _stack([grid.scales for grid in grids], graph.real))
    return packed, scales


def _grid_names(path: str, grid: QuantizedWeight) -> tuple[str, str]:
    return f"{path}.weight_q{grid.bits}", f"{path}.scales"


def _matmul_nbits(
    graph: Graph, path: str, module: Linear, grids: Sequence[QuantizedWeight], x: str, packed: str, scales: str
) -> str:
    return graph.op(
        "MatMulNBits",
        f"{path}/MatMulNBits",
        *(x, packed, scales),
        domain=CONTRIB,
        K=grids[0].values.shape[1],
        N=sum(grid.values.shape[0] for grid in grids),
        bits=grids[0].bits,
        block_size=grids[0].group,
        accuracy_level=accuracy_level(module),
    )


def accuracy_level(module: nn.Module) -> int:
    """Return what onnxruntime calls the precision of the activations that a quantized module multiplies."""
    levels: dict[type, int] = {BlockActivationLinear: _INT8, HalfLinear: _AS_GIVEN}
    return levels.get(type(module), _FLOAT)


def _same(one: QuantizedWeight, other: QuantizedWeight) -> bool:
    return (
        (one.bits, one.group, one.values.shape) == (other.bits, other.group, other.values.shape)
        and torch.equal(one.scales, other.scales)
        and torch.equal(one.values, other.values)
    )


def _stack(parts: Sequence[torch.Tensor], dtype: str) -> np.ndarray:
    """Matrices row upon row."""
    return np.concatenate([float_array(part).astype(dtype) for part in parts])
