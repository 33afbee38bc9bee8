"""The traced model of `model/decoder.py`, written once more in onnxruntime's operators.

Names and shapes at the border are those that onnxruntime-genai and transformers.js look for, so that one file can
serve both; inside, the order of the arithmetic is the eager model's. `i` is the layer's index in the network.

- inputs `input_ids [B, T]`, `attention_mask [B, past+T]`, `position_ids [B, T]`, per conv layer
  `past_conv.i [B, hidden, L]`, per attention layer `past_key_values.i.key|value [B, kv_heads, past, head_dim]`;
  optionally `num_logits_to_keep` (1 unless given, 0 = all T rows);
- outputs `logits [B, kept, vocab]`, `present_conv.i`, `present.i.key|value`.

Row b's call starts at `position_ids[b, 0]` and holds as many valid tokens as its mask has ones from there on; the
rest is right padding, which touches no conv state and writes its keys beyond the valid ones, where the next call
overwrites them. With past and present bound to the same buffer, GroupQueryAttention writes in place. It refuses
several rows of several tokens each on top of a past: a batch prefills in one call and then decodes, a single row
may be cut at will. A conv state has L columns here although L-1 are enough: the first is ignored when it comes in.
"""

from __future__ import annotations

from typing import NamedTuple, cast

import numpy as np
import torch
from onnx import TensorProto

from lfm2_export.model.attention import Attention
from lfm2_export.model.decoder import Block, Decoder
from lfm2_export.model.layers import FeedForward, RMSNorm, rotary
from lfm2_export.model.short_conv import ShortConv
from lfm2_export.targets._onnx.graph import CONTRIB, Graph
from lfm2_export.targets._onnx.weights import embedding, head, linear, vector

_BATCH, _TOKENS, _PAST, _TOTAL = "batch_size", "sequence_length", "past_sequence_length", "total_sequence_length"


class _Call(NamedTuple):
    """What the layers must know of a call's place in the window, computed once."""

    tokens: str  # [] int64: T
    length: str  # [B] int64: valid tokens of each row
    conv_columns: str  # [B, hidden, L] int64: which columns of (last L-1, this call's T) are the new conv state
    last_index: str  # [B] int32: absolute position of each row's last column, padding included
    total: str  # [] int32: the most columns any row has after this call
    cos: str  # [window, head_dim/2]
    sin: str  # [window, head_dim/2]


def build(decoder: Decoder, window: int, fused_embedding: bool = False) -> Graph:
    """The whole graph, for contexts of up to `window` tokens."""
    config = decoder.config
    graph = Graph("lfm2")
    graph.output("logits", "float32", _BATCH, 1, config.vocab_size)  # 1: by default; genai reads it as "last only"
    tokens = graph.input("input_ids", "int64", _BATCH, _TOKENS)
    call = _place(graph, decoder, window)
    x = embedding(graph, decoder.embed_tokens, tokens, fused_embedding)
    delta = ""  # what the residual stream is owed: added by the next norm's fused kernel
    for i, kind in enumerate(config.layer_types):
        block, path = cast(Block, decoder.layers[i]), f"layers.{i}"
        x, normed = _add_norm(graph, f"{path}.operator_norm", block.operator_norm, x, delta)
        if kind == "conv":
            delta = _short_conv(graph, i, block.conv, normed, call)
        else:
            delta = _attention(graph, i, block.self_attn, normed, call)
        x, normed = _add_norm(graph, f"{path}.ffn_norm", block.ffn_norm, x, delta)
        delta = _feed_forward(graph, f"{path}.feed_forward", block.feed_forward, normed)
    _, normed = _add_norm(graph, "embedding_norm", decoder.embedding_norm, x, delta)
    kept = graph.op("GatherND", "logits/hidden", normed, _kept_rows(graph, call), batch_dims=1)
    graph.op("Identity", "logits", head(graph, decoder, kept))
    return graph


def _place(graph: Graph, decoder: Decoder, window: int) -> _Call:
    """Read position and padding out of the mask and the position ids."""
    config = decoder.config
    mask = graph.input("attention_mask", "int64", _BATCH, _TOTAL)
    position_ids = graph.input("position_ids", "int64", _BATCH, _TOKENS)
    tokens = graph.op("Gather", "call/tokens", graph.op("Shape", "call/shape", "input_ids"), graph.int(1))
    total = graph.op("Gather", "call/total", graph.op("Shape", "call/mask_shape", mask), graph.int(1))
    position = graph.op("Gather", "call/position", position_ids, graph.int(0), axis=1)
    seen = graph.op("ReduceSum", "call/seen", mask, graph.ints(1), keepdims=0)
    length = graph.op("Sub", "call/length", seen, position)
    last = graph.op("Sub", "call/last", graph.op("Add", "call/end", position, tokens), graph.int(1))
    cos, sin = rotary(torch.arange(window).unsqueeze(0), config.head_dim, config.rope_theta)
    half = config.head_dim // 2
    return _Call(
        tokens=tokens,
        length=length,
        conv_columns=_conv_columns(graph, length, config.hidden_size, config.conv_L_cache),
        last_index=graph.op("Cast", "call/last_index", last, to=TensorProto.INT32),
        total=graph.op("Cast", "call/total_int32", total, to=TensorProto.INT32),
        cos=vector(graph, "rotary.cos", cos[0, 0, :, :half]),
        sin=vector(graph, "rotary.sin", sin[0, 0, :, :half]),
    )


def _conv_columns(graph: Graph, length: str, hidden: int, width: int) -> str:
    """`[B, hidden, L]`: the L columns that end with each row's last valid token.

    For a row without a valid token the first index is -1, any column: what it reads is the ignored one.
    """
    ends = graph.op("Unsqueeze", "call/conv_ends", length, graph.ints(1, 2))
    columns = graph.op("Add", "call/conv_window", ends, graph.ints(*range(-1, width - 1)))
    return graph.op("Expand", "call/conv_columns", columns, graph.ints(1, hidden, 1))


def _kept_rows(graph: Graph, call: _Call) -> str:
    """`[B, kept, 1]`: the rows of the call whose logits are wanted, the last `num_logits_to_keep` valid ones or all."""
    keep = graph.optional_input("num_logits_to_keep", np.array(1, dtype=np.int64))
    everything = graph.op("Equal", "logits/everything", keep, graph.int(0))
    fewer = graph.op("Min", "logits/fewer", keep, call.tokens)
    count = graph.op("Where", "logits/count", everything, call.tokens, fewer)
    end = graph.op("Where", "logits/end", everything, call.tokens, call.length)
    first = graph.op("Unsqueeze", "logits/first", graph.op("Sub", "logits/start", end, count), graph.ints(1))
    offsets = graph.op("Range", "logits/offsets", graph.int(0), count, graph.int(1))
    rows = graph.op("Max", "logits/rows", graph.op("Add", "logits/steps", first, offsets), graph.int(0))
    return graph.op("Unsqueeze", "logits/index", rows, graph.ints(2))


def _add_norm(graph: Graph, path: str, norm: RMSNorm, x: str, delta: str) -> tuple[str, str]:
    """`(x + delta, RMSNorm(x + delta))`, `[B, T, hidden]` each; no delta before the first layer."""
    gamma = vector(graph, f"{path}.weight", norm.weight)
    if not delta:
        return x, _norm(graph, path, x, gamma, norm.eps)
    outputs = (f"{path}/norm", "", "", f"{path}/sum")
    kind = "SkipSimplifiedLayerNormalization"
    graph.op_many(kind, f"{path}/{kind}", (x, delta, gamma), outputs, CONTRIB, epsilon=norm.eps)
    return outputs[3], outputs[0]


def _norm(graph: Graph, path: str, x: str, gamma: str, epsilon: float) -> str:
    """onnxruntime's own RMSNorm, which it keeps in the default domain; the standard one needs opset 23."""
    return graph.op("SimplifiedLayerNormalization", f"{path}/norm", x, gamma, axis=-1, epsilon=epsilon, stash_type=1)


def _short_conv(graph: Graph, i: int, conv: ShortConv, x: str, call: _Call) -> str:
    """`out_proj(C ⊙ conv(B ⊙ x))` over the old state's columns and this call's, time last."""
    path, hidden, width = f"layers.{i}.conv", conv.kernel.shape[1], conv.width
    past = graph.input(f"past_conv.{i}", "float32", _BATCH, hidden, width)
    graph.output(f"present_conv.{i}", "float32", _BATCH, hidden, width)
    gate_b, gate_c, inner = (
        linear(graph, f"{path}.{name}", getattr(conv, name), x) for name in ("b_proj", "c_proj", "x_proj")
    )
    gated = _mul(graph, f"{path}/gated", gate_b, inner)
    gated = graph.op("Transpose", f"{path}/gated_time_last", gated, perm=[0, 2, 1])
    old = graph.op("Slice", f"{path}/old", past, graph.ints(1), graph.ints(width), graph.ints(2))
    columns = graph.op("Concat", f"{path}/columns", old, gated, axis=2)
    graph.op("GatherElements", f"present_conv.{i}", columns, call.conv_columns, axis=2)
    kernel = vector(graph, f"{path}.kernel", conv.kernel.t().unsqueeze(1))
    bias = [] if conv.bias is None else [vector(graph, f"{path}.bias", conv.bias)]
    mixed = graph.op("Conv", f"{path}/Conv", columns, kernel, *bias, group=hidden, kernel_shape=[width])
    mixed = graph.op("Transpose", f"{path}/mixed", mixed, perm=[0, 2, 1])
    return linear(graph, f"{path}.out_proj", conv.out_proj, _mul(graph, f"{path}/gated_out", gate_c, mixed))


def _attention(graph: Graph, i: int, attention: Attention, x: str, call: _Call) -> str:
    """Projections, per-head norms, then RoPE, cache and softmax in one fused operator."""
    path, width = f"layers.{i}.self_attn", attention.head_dim
    kv_heads = attention.k_proj.weight.shape[0] // width
    past = [
        graph.input(f"past_key_values.{i}.{name}", "float32", _BATCH, kv_heads, _PAST, width)
        for name in ("key", "value")
    ]
    present = [f"present.{i}.key", f"present.{i}.value"]
    for name in present:
        graph.output(name, "float32", _BATCH, kv_heads, "present_sequence_length", width)
    query = _head_norm(graph, path, "q", attention.q_layernorm, linear(graph, f"{path}.q_proj", attention.q_proj, x))
    key = _head_norm(graph, path, "k", attention.k_layernorm, linear(graph, f"{path}.k_proj", attention.k_proj, x))
    value = linear(graph, f"{path}.v_proj", attention.v_proj, x)
    mixed, _, _ = graph.op_many(
        "GroupQueryAttention",
        f"{path}/GroupQueryAttention",
        (query, key, value, *past, call.last_index, call.total, call.cos, call.sin),
        (f"{path}/mixed", *present),
        CONTRIB,
        num_heads=attention.q_proj.weight.shape[0] // width,
        kv_num_heads=kv_heads,
        do_rotary=1,
    )
    return linear(graph, f"{path}.out_proj", attention.out_proj, mixed)


def _head_norm(graph: Graph, path: str, name: str, norm: RMSNorm, x: str) -> str:
    """RMSNorm of every head by itself, `[B, T, heads·head_dim]` in and out."""
    path, width = f"{path}.{name}_layernorm", norm.weight.shape[0]
    heads = graph.op("Reshape", f"{path}/heads", x, graph.ints(0, 0, -1, width))
    normed = _norm(graph, path, heads, vector(graph, f"{path}.weight", norm.weight), norm.eps)
    return graph.op("Reshape", f"{path}/flat", normed, graph.ints(0, 0, -1))


def _feed_forward(graph: Graph, path: str, mlp: FeedForward, x: str) -> str:
    """`w2(silu(w1 x) ⊙ w3 x)`; onnxruntime fuses the sigmoid and its product when it loads the file."""
    gate = linear(graph, f"{path}.w1", mlp.w1, x)
    silu = _mul(graph, f"{path}/silu", gate, graph.op("Sigmoid", f"{path}/sigmoid", gate))
    gated = _mul(graph, f"{path}/gated", silu, linear(graph, f"{path}.w3", mlp.w3, x))
    return linear(graph, f"{path}.w2", mlp.w2, gated)


def _mul(graph: Graph, name: str, a: str, b: str) -> str:
    return graph.op("Mul", name, a, b)
