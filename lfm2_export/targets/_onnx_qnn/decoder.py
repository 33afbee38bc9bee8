"""The traced model of `model/decoder.py` as a static ONNX graph that Qualcomm's NPU takes whole.

The NPU wants every shape fixed, so a method has a fixed number of rows (1 to decode, N to prefill) over the whole
window of C columns; unused rows and columns are hidden by a mask. Inputs of a method with N rows, batch 1:

- `tokens [1, N] int32`; `cos`, `sin [1, 1, N, head_dim]`, RoPE's factors of each row's position;
- `hidden [1, 1, N, C+N]`: 1 where a row must not see a column (C of the cache, then this call's N), else 0;
- with N > 1: `last_row [1] int32`, the last valid row, and `conv_rows [L-1] int32`, which rows of (old conv state,
  this call's) are the new conv state;
- `conv_state.i [1, L-1, hidden]`, `key.i`, `value.i [1, kv_heads, C, head_dim]`, only read.

Outputs: `logits [1, vocab]` of the last valid row, `new_conv_state.i [1, L-1, hidden]`, and this call's
`new_key.i`, `new_value.i [1, kv_heads, N, head_dim]`, which the caller writes at its position.

Written for the NPU: RMSNormalization (opset 23; a norm spelled with Reciprocal comes out wrong there), the convolution
as L multiply-adds, query heads folded instead of keys repeated, no norm of four dimensions (see `_rotated_heads`).
"""

from __future__ import annotations

from typing import cast

import numpy as np
import torch
from onnx import TensorProto
from torch import Tensor, nn

from lfm2_export.model.attention import Attention
from lfm2_export.model.decoder import Block, Decoder
from lfm2_export.model.layers import FeedForward, RMSNorm
from lfm2_export.model.short_conv import ShortConv
from lfm2_export.quantize.apply import HalfLinear
from lfm2_export.targets.onnx_graph import Graph

_OPSET, _IR_VERSION = 23, 11
MASK, SCALED, MASKED = "mask", "scaled", "masked"  # what is added to scores, the scores before it and after it
Linear = nn.Linear | HalfLinear


def build(decoder: Decoder, rows: int, window: int, hide: float) -> Graph:
    """The graph of a call of `rows` tokens; `hide` is subtracted from the score of a hidden column."""
    config = decoder.config
    graph = Graph("lfm2", _OPSET, _IR_VERSION)
    tokens = graph.input("tokens", "int32", 1, rows)
    for name in ("cos", "sin"):
        graph.input(name, "float32", 1, 1, rows, config.head_dim)
    hidden = graph.input("hidden", "float32", 1, 1, rows, window + rows)
    if rows > 1:
        graph.input("last_row", "int32", 1)
        graph.input("conv_rows", "int32", config.conv_L_cache - 1)
    graph.output("logits", "float32", 1, config.vocab_size)
    mask = graph.op("Mul", MASK, hidden, _scalar(graph, "mask.hide", -hide))
    x = graph.op("Gather", "embed_tokens/Gather", _matrix(graph, "embed_tokens", decoder.embed_tokens.weight), tokens)
    for i, kind in enumerate(config.layer_types):
        block, path = cast(Block, decoder.layers[i]), f"layers.{i}"
        normed = _norm(graph, f"{path}.operator_norm", block.operator_norm, x)
        if kind == "conv":
            mixed = _short_conv(graph, i, block.conv, normed, rows)
        else:
            mixed = _attention(graph, i, block.self_attn, normed, rows, window, mask)
        x = graph.op("Add", f"{path}/mixed", x, mixed)
        normed = _norm(graph, f"{path}.ffn_norm", block.ffn_norm, x)
        x = graph.op("Add", f"{path}/out", x, _feed_forward(graph, f"{path}.feed_forward", block.feed_forward, normed))
    if rows > 1:
        x = graph.op("Gather", "logits/row", x, "last_row", axis=1)
    normed = _norm(graph, "embedding_norm", decoder.embedding_norm, x)
    logits = graph.op("MatMul", "lm_head/MatMul", normed, _head(graph, decoder))
    graph.op("Reshape", "logits", logits, graph.ints(1, config.vocab_size))
    return graph


def _norm(graph: Graph, path: str, norm: RMSNorm, x: str) -> str:
    gamma = graph.parameter(f"{path}.weight", norm.weight)
    return graph.op("RMSNormalization", f"{path}/norm", x, gamma, axis=-1, epsilon=norm.eps)


def _short_conv(graph: Graph, i: int, conv: ShortConv, x: str, rows: int) -> str:
    """`out_proj(C ⊙ conv(B ⊙ x))` over the old state's rows and this call's."""
    path, width, channels = f"layers.{i}.conv", conv.width, conv.kernel.shape[1]
    past = graph.input(f"conv_state.{i}", "float32", 1, width - 1, channels)
    graph.output(f"new_conv_state.{i}", "float32", 1, width - 1, channels)
    gate_b, gate_c, inner = (
        _linear(graph, f"{path}.{name}", getattr(conv, name), x) for name in ("b_proj", "c_proj", "x_proj")
    )
    columns = graph.op("Concat", f"{path}/columns", past, graph.op("Mul", f"{path}/gated", gate_b, inner), axis=1)
    if rows > 1:
        graph.op("Gather", f"new_conv_state.{i}", columns, "conv_rows", axis=1)
    else:
        _slice(graph, f"new_conv_state.{i}", columns, 1, width, axis=1)
    mixed = ""
    for tap in range(width):
        kernel = graph.parameter(f"{path}.kernel.{tap}", conv.kernel[tap])
        shifted = _slice(graph, f"{path}/shifted.{tap}", columns, tap, tap + rows, axis=1)
        product = graph.op("Mul", f"{path}/tap.{tap}", shifted, kernel)
        mixed = graph.op("Add", f"{path}/sum.{tap}", mixed, product) if mixed else product
    if conv.bias is not None:
        mixed = graph.op("Add", f"{path}/biased", mixed, graph.parameter(f"{path}.bias", conv.bias))
    return _linear(graph, f"{path}.out_proj", conv.out_proj, graph.op("Mul", f"{path}/gated_out", gate_c, mixed))


def _attention(graph: Graph, i: int, attention: Attention, x: str, rows: int, window: int, mask: str) -> str:
    """Softmax attention of this call's rows over the cache and themselves."""
    path, width = f"layers.{i}.self_attn", attention.head_dim
    heads, kv_heads = attention.q_proj.weight.shape[0] // width, attention.k_proj.weight.shape[0] // width
    past = [graph.input(f"{name}.{i}", "float32", 1, kv_heads, window, width) for name in ("key", "value")]
    new = [f"new_{name}.{i}" for name in ("key", "value")]
    for name in new:
        graph.output(name, "float32", 1, kv_heads, rows, width)
    query = _rotated_heads(graph, f"{path}.q", attention.q_proj, attention.q_layernorm, x, heads, f"{path}/query")
    _rotated_heads(graph, f"{path}.k", attention.k_proj, attention.k_layernorm, x, kv_heads, new[0])
    value = _heads(graph, f"{path}.v", attention.v_proj, x, kv_heads, width)
    graph.op("Transpose", new[1], value, perm=[0, 2, 1, 3])
    keys, values = (
        graph.op("Concat", f"{path}/{name}s", cached, fresh, axis=2)
        for name, cached, fresh in zip(("key", "value"), past, new, strict=True)
    )
    folded_rows = heads // kv_heads * rows
    folded = graph.op("Reshape", f"{path}/folded", query, graph.ints(1, kv_heads, folded_rows, width))
    turned = graph.op("Transpose", f"{path}/turned_keys", keys, perm=[0, 1, 3, 2])
    scores = graph.op("MatMul", f"{path}/products", folded, turned)
    scores = graph.op("Reshape", f"{path}/scores", scores, graph.ints(1, heads, rows, window + rows))
    scores = graph.op("Mul", f"{path}/{SCALED}", scores, _scalar(graph, "attention.scale", width**-0.5))
    weights = graph.op("Softmax", f"{path}/weights", graph.op("Add", f"{path}/{MASKED}", scores, mask), axis=-1)
    folded_shape = graph.ints(1, kv_heads, folded_rows, window + rows)
    weights = graph.op("Reshape", f"{path}/folded_weights", weights, folded_shape)
    mixed = graph.op("MatMul", f"{path}/mixed", weights, values)
    mixed = graph.op("Reshape", f"{path}/unfolded", mixed, graph.ints(1, heads, rows, width))
    mixed = graph.op("Transpose", f"{path}/mixed_rows", mixed, perm=[0, 2, 1, 3])
    flat = graph.op("Reshape", f"{path}/flat", mixed, graph.ints(1, rows, heads * width))
    return _linear(graph, f"{path}.out_proj", attention.out_proj, flat)


def _heads(graph: Graph, path: str, projection: Linear, x: str, heads: int, width: int) -> str:
    """`x [1, N, hidden]` → `[1, N, heads, head_dim]`."""
    product = _linear(graph, f"{path}_proj", projection, x)
    return graph.op("Reshape", f"{path}/heads", product, graph.ints(1, -1, heads, width))


def _rotated_heads(graph: Graph, path: str, projection: Linear, norm: RMSNorm, x: str, heads: int, name: str) -> str:
    """Projected, normed per head, rotated: `[1, heads, N, head_dim]`, under that name.

    The norm runs over `[1, N·heads, head_dim]`: on four dimensions the NPU's fp16 one spoils some rows.
    """
    width = norm.weight.shape[0]
    each = graph.op("Reshape", f"{path}/each", _linear(graph, f"{path}_proj", projection, x), graph.ints(1, -1, width))
    normed = _norm(graph, f"{path}_layernorm", norm, each)
    normed = graph.op("Reshape", f"{path}/heads", normed, graph.ints(1, -1, heads, width))
    turned = graph.op("Transpose", f"{path}/normed", normed, perm=[0, 2, 1, 3])
    first = _slice(graph, f"{path}/first", turned, 0, width // 2, axis=3)
    second = graph.op("Neg", f"{path}/negative", _slice(graph, f"{path}/second", turned, width // 2, width, axis=3))
    crossed = graph.op("Concat", f"{path}/crossed", second, first, axis=3)
    along = graph.op("Mul", f"{path}/along", turned, "cos")
    return graph.op("Add", name, along, graph.op("Mul", f"{path}/across", crossed, "sin"))


def _feed_forward(graph: Graph, path: str, mlp: FeedForward, x: str) -> str:
    """`w2(silu(w1 x) ⊙ w3 x)`."""
    gate = _linear(graph, f"{path}.w1", mlp.w1, x)
    silu = graph.op("Mul", f"{path}/silu", gate, graph.op("Sigmoid", f"{path}/sigmoid", gate))
    gated = graph.op("Mul", f"{path}/gated", silu, _linear(graph, f"{path}.w3", mlp.w3, x))
    return _linear(graph, f"{path}.w2", mlp.w2, gated)


def _linear(graph: Graph, path: str, module: Linear, x: str) -> str:
    """`x [..., columns]` → `[..., rows]`."""
    product = graph.op("MatMul", f"{path}/MatMul", x, _matrix(graph, path, module.weight, transposed=True))
    if module.bias is None:
        return product
    return graph.op("Add", f"{path}/Add", product, graph.parameter(f"{path}.bias", module.bias))


def _head(graph: Graph, decoder: Decoder) -> str:
    """The head's matrix; in fp16 a tied one is the embedding's, turned when the model is loaded."""
    table, weight = decoder.embed_tokens.weight, decoder.lm_head.weight
    if weight.dtype == torch.float16 and table.dtype == torch.float16 and torch.equal(table, weight):
        return graph.op("Transpose", weight_name("lm_head"), weight_name("embed_tokens"), perm=[1, 0])
    return _matrix(graph, "lm_head", weight, transposed=True)


def _matrix(graph: Graph, path: str, weight: Tensor, transposed: bool = False) -> str:
    """A weight as float32; one that is stored in fp16 is widened when the model is loaded."""
    shape = weight.shape[::-1] if transposed else weight.shape
    dtype = np.float16 if weight.dtype == torch.float16 else np.float32
    stored = weight_name(path) if dtype == np.float32 else f"{path}.weight_fp16"

    def make() -> np.ndarray:
        array = weight.detach().numpy()
        return array.transpose() if transposed else array

    graph.weight(stored, dtype, shape, make)
    return stored if dtype == np.float32 else graph.op("Cast", weight_name(path), stored, to=TensorProto.FLOAT)


def weight_name(path: str) -> str:
    """The graph's name of a module's matrix: `[inputs, outputs]`, or the embedding's `[vocab, hidden]`."""
    return f"{path}.weight"


def _slice(graph: Graph, name: str, x: str, start: int, end: int, axis: int) -> str:
    return graph.op("Slice", name, x, graph.ints(start), graph.ints(end), graph.ints(axis))


def _scalar(graph: Graph, name: str, value: float) -> str:
    """A constant `[1] float32`, shared by all its users."""
    return graph.constant(name, np.array([value], dtype=np.float32))
