"""The decoder's matrices as ONNX operators: fp32 ones as MatMul and Gather, quantized ones in onnxruntime's packing.

Integers and scales are the ones the eager quantized model computes with; nothing is re-quantized here.
"""

from __future__ import annotations

import numpy as np
import torch
from onnx import TensorProto
from torch import nn

from lfm2_export.model.decoder import Decoder
from lfm2_export.quantize.apply import BlockActivationLinear, QuantizedWeight, quantized_weight
from lfm2_export.targets._onnx.graph import CONTRIB, Graph

Linear = nn.Linear | BlockActivationLinear

_FLOAT, _INT8 = 1, 4  # MatMulNBits' accuracy levels: what activations are computed in
_TABLE = "embed_tokens.weight"


def pack(values: np.ndarray, bits: int, group: int) -> np.ndarray:
    """Signed integers `[rows, columns] int8` → MatMulNBits' `[rows, columns/group, group·bits/8] uint8`.

    Stored unsigned around the operator's default zero point 2^(bits-1); of two 4-bit values in a byte the first
    is the low half. Layout: onnxruntime's ContribOperators.md, MatMulNBits, input B.
    """
    unsigned = (values + np.int8(8)).view(np.uint8) if bits == 4 else values.view(np.uint8) ^ np.uint8(128)
    packed = unsigned[:, 0::2] | unsigned[:, 1::2] << 4 if bits == 4 else unsigned
    return packed.reshape(values.shape[0], values.shape[1] // group, -1)


def linear(graph: Graph, path: str, module: Linear, x: str) -> str:
    """`x [..., columns]` → `[..., rows]` through a linear module of the decoder, bias included."""
    grid = quantized_weight(module)
    if grid is None:
        weight = module.weight
        transposed = weight.shape[::-1]
        name = graph.weight(f"{path}.weight", np.float32, transposed, lambda: _array(weight).transpose())
        product = graph.op("MatMul", f"{path}/MatMul", x, name)
    else:
        product = _matmul_nbits(graph, path, module, grid, x, *_add_grid(graph, path, grid))
    if module.bias is None:
        return product
    return graph.op("Add", f"{path}/Add", product, vector(graph, f"{path}.bias", module.bias))


def embedding(graph: Graph, module: nn.Embedding, tokens: str, fused: bool = False) -> str:
    """`tokens [B, T]` → `[B, T, hidden]`.

    A quantized table is read with plain operators, which every runtime has and which give the same bits, or, when
    `fused`, by GatherBlockQuantized, which the WebAssembly build inside transformers.js lacks.
    """
    grid = quantized_weight(module)
    if grid is None:
        weight = module.weight
        table = graph.weight(_TABLE, np.float32, weight.shape, lambda: _array(weight))
        return graph.op("Gather", "embed_tokens/Gather", table, tokens, axis=0)
    packed, scales = _add_grid(graph, "embed_tokens", grid)
    if not fused:
        return _dequantized_rows(graph, "embed_tokens", grid, packed, scales, tokens)
    flat = graph.op("Reshape", "embed_tokens/Reshape", packed, graph.ints(grid.values.shape[0], -1))
    return graph.op(
        "GatherBlockQuantized",
        "embed_tokens/GatherBlockQuantized",
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
    unsigned = graph.op("Cast", f"{path}/float", taken, to=TensorProto.FLOAT)
    zero = graph.weight(f"{path}/zero", np.float32, (), lambda: np.array(2 ** (grid.bits - 1), dtype=np.float32))
    signed = graph.op("Sub", f"{path}/signed", unsigned, zero)
    taken_scales = graph.op("Gather", f"{path}/row_scales", scales, rows, axis=0)
    scaled = graph.op(
        "Mul", f"{path}/scaled", signed, graph.op("Unsqueeze", f"{path}/scale", taken_scales, graph.ints(3))
    )
    return graph.op("Reshape", f"{path}/rows", scaled, graph.ints(0, 0, -1))


def head(graph: Graph, decoder: Decoder, x: str) -> str:
    """`x [..., hidden]` → logits `[..., vocab]`; reads the embedding's stored matrix where both are the same."""
    module, grid = decoder.lm_head, quantized_weight(decoder.lm_head)
    table = quantized_weight(decoder.embed_tokens)
    if grid is not None and table is not None and _same(grid, table):
        return _matmul_nbits(graph, "lm_head", module, grid, x, *_grid_names("embed_tokens", grid))
    if grid is None and table is None and module.weight.data_ptr() == decoder.embed_tokens.weight.data_ptr():
        return graph.op("MatMul", "lm_head/MatMul", x, graph.op("Transpose", "lm_head/Transpose", _TABLE, perm=[1, 0]))
    return linear(graph, "lm_head", module, x)


def vector(graph: Graph, name: str, parameter: torch.Tensor) -> str:
    """A small fp32 parameter as it is."""
    return graph.weight(name, np.float32, parameter.shape, lambda: _array(parameter))


def _add_grid(graph: Graph, path: str, grid: QuantizedWeight) -> tuple[str, str]:
    rows, columns = grid.values.shape
    blocks = columns // grid.group
    packed, scales = _grid_names(path, grid)
    shape = (rows, blocks, grid.group * grid.bits // 8)
    graph.weight(packed, np.uint8, shape, lambda: pack(grid.values.numpy(), grid.bits, grid.group))
    graph.weight(scales, np.float32, (rows, blocks), lambda: _array(grid.scales))
    return packed, scales


def _grid_names(path: str, grid: QuantizedWeight) -> tuple[str, str]:
    return f"{path}.weight_q{grid.bits}", f"{path}.scales"


def _matmul_nbits(
    graph: Graph, path: str, module: Linear, grid: QuantizedWeight, x: str, packed: str, scales: str
) -> str:
    rows, columns = grid.values.shape
    return graph.op(
        "MatMulNBits",
        f"{path}/MatMulNBits",
        *(x, packed, scales),
        domain=CONTRIB,
        K=columns,
        N=rows,
        bits=grid.bits,
        block_size=grid.group,
        accuracy_level=_INT8 if isinstance(module, BlockActivationLinear) else _FLOAT,
    )


def _same(one: QuantizedWeight, other: QuantizedWeight) -> bool:
    return (
        (one.bits, one.group, one.values.shape) == (other.bits, other.group, other.values.shape)
        and torch.equal(one.scales, other.scales)
        and torch.equal(one.values, other.values)
    )


def _array(tensor: torch.Tensor) -> np.ndarray:
    return tensor.detach().to(torch.float32).numpy()
