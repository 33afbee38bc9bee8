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
from lfm2_export.model.layers import FeedForward, RMSNorm
from lfm2_export.model.operators import rotary_tables
from lfm2_export.model.short_conv import ShortConv
from lfm2_export.targets._onnx.graph import CONTRIB, Graph
from lfm2_export.targets._onnx.weights import embedding, head, linear, linears, vector

_FAR = 2**62  # past any axis: slice to its end
_BATCH, _TOKENS, _PAST, _TOTAL = "batch_size", "sequence_length", "past_sequence_length", "total_sequence_length"


class _Call(NamedTuple):
    """What the layers must know of a call's place in the window, computed once."""

    tokens: str  # [] int64: T
    length: str  # [B] int64: valid tokens of each row
    conv_columns: str  # [B, L, 1] int64: which rows of (last L-1, this call's T) are the new conv state
    tap_ends: list[str]  # L-1 of [1] int64: where the rows under each tap but the last end
    fused_conv: bool
    last_index: str  # [B] int32: absolute position of each row's last column, padding included
    total: str  # [] int32: the most columns any row has after this call
    cos: str  # [window, head_dim/2] in the cache's dtype
    sin: str  # [window, head_dim/2]
    cache: str  # dtype of keys and values, and with them of attention


def build(
    decoder: Decoder, window: int, fused_embedding: bool = False, real: str = "float32", fused_conv: bool = False
) -> Graph:
    """The whole graph, for contexts of up to `window` tokens, with activations and conv states in `real`."""
    config = decoder.config
    graph = Graph("lfm2", real=real)
    graph.output("logits", "float32", _BATCH, 1, config.vocab_size)  # 1: by default; genai reads it as "last only"
    tokens = graph.input("input_ids", "int64", _BATCH, _TOKENS)
    call = _place(graph, decoder, window, fused_conv)
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
    graph.cast("logits", head(graph, decoder, kept), "float32")
    return graph


def _place(graph: Graph, decoder: Decoder, window: int, fused_conv: bool) -> _Call:
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
    cos, sin = rotary_tables(torch.arange(window), config.head_dim, config.rope_theta)
    half, cache = config.head_dim // 2, _cache_dtype(decoder)
    return _Call(
        tokens=tokens,
        length=length,
        conv_columns=_conv_columns(graph, length, config.conv_L_cache),
        tap_ends=[] if fused_conv else _tap_ends(graph, tokens, config.conv_L_cache),
        fused_conv=fused_conv,
        last_index=graph.op("Cast", "call/last_index", last, to=TensorProto.INT32),
        total=graph.op("Cast", "call/total_int32", total, to=TensorProto.INT32),
        cos=vector(graph, "rotary.cos", cos[:, :half], cache),
        sin=vector(graph, "rotary.sin", sin[:, :half], cache),
        cache=cache,
    )


def _cache_dtype(decoder: Decoder) -> str:
    dtypes = {decoder.block(layer).self_attn.cache_dtype for layer in decoder.config.attention_layers}
    return "float16" if dtypes == {torch.float16} else "float32"


def _conv_columns(graph: Graph, length: str, width: int) -> str:
    """`[B, L, 1]`: the L rows that end with each row's last valid token.

    For a row without a valid token the first index is -1, any column: what it reads is the ignored one.
    """
    ends = graph.op("Unsqueeze", "call/conv_ends", length, graph.ints(1, 2))
    offsets = graph.op("Unsqueeze", "call/conv_offsets", graph.ints(*range(-1, width - 1)), graph.ints(1))
    return graph.op("Add", "call/conv_columns", ends, offsets)


def _tap_ends(graph: Graph, tokens: str, width: int) -> list[str]:
    count = graph.op("Unsqueeze", "call/tap_end_0", tokens, graph.ints(0))
    return [count, *(graph.op("Add", f"call/tap_end_{tap}", count, graph.ints(tap)) for tap in range(1, width - 1))]


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
        normed = _norm(graph, path, x, gamma, norm.eps)
        graph.seen[path] = x, normed
        return x, normed
    outputs = (f"{path}/norm", "", "", f"{path}/sum")
    kind = "SkipSimplifiedLayerNormalization"
    graph.op_many(kind, f"{path}/{kind}", (x, delta, gamma), outputs, CONTRIB, epsilon=norm.eps)
    graph.seen[path] = outputs[3], outputs[0]
    return outputs[3], outputs[0]


def _norm(graph: Graph, path: str, x: str, gamma: str, epsilon: float) -> str:
    """onnxruntime's own RMSNorm, which it keeps in the default domain; the standard one needs opset 23."""
    return graph.op("SimplifiedLayerNormalization", f"{path}/norm", x, gamma, axis=-1, epsilon=epsilon, stash_type=1)


def _short_conv(graph: Graph, i: int, conv: ShortConv, x: str, call: _Call) -> str:
    """`out_proj(C ⊙ conv(B ⊙ x))` over the old state's rows and this call's, time before channels as in the model."""
    path, hidden, width = f"layers.{i}.conv", conv.kernel.shape[1], conv.width
    past = graph.input(f"past_conv.{i}", graph.real, _BATCH, hidden, width)
    graph.output(f"present_conv.{i}", graph.real, _BATCH, hidden, width)
    projections = {name: getattr(conv, name) for name in ("b_proj", "c_proj", "x_proj")}
    gate_b, gate_c, inner = linears(graph, path, "in_proj", projections, x)
    gated = _mul(graph, f"{path}/gated", gate_b, inner)
    old = graph.op("Slice", f"{path}/old", past, graph.ints(1), graph.ints(width), graph.ints(2))
    old_rows = graph.op("Transpose", f"{path}/old_rows", old, perm=[0, 2, 1])
    rows = graph.op("Concat", f"{path}/rows", old_rows, gated, axis=1)
    last = graph.op("GatherND", f"{path}/last", rows, call.conv_columns, batch_dims=1)
    graph.op("Transpose", f"present_conv.{i}", last, perm=[0, 2, 1])
    mixed = _fused_taps(graph, path, conv, gated, old) if call.fused_conv else _taps(graph, path, conv, rows, call)
    return linear(graph, f"{path}.out_proj", conv.out_proj, _mul(graph, f"{path}/gated_out", gate_c, mixed))


def _taps(graph: Graph, path: str, conv: ShortConv, rows: str, call: _Call) -> str:
    """The convolution as L multiply-adds over shifted views: for one token a little cheaper than onnxruntime's Conv."""
    mixed = ""
    for tap in range(conv.width):
        end = [*call.tap_ends, graph.ints(_FAR)][tap]
        view = graph.op("Slice", f"{path}/view_{tap}", rows, graph.ints(tap), end, graph.ints(1))
        product = _mul(graph, f"{path}/tap_{tap}", view, vector(graph, f"{path}.kernel.{tap}", conv.kernel[tap]))
        mixed = graph.op("Add", f"{path}/taps_{tap}", mixed, product) if mixed else product
    if conv.bias is None:
        return mixed
    return graph.op("Add", f"{path}/biased", mixed, vector(graph, f"{path}.bias", conv.bias))


def _fused_taps(graph: Graph, path: str, conv: ShortConv, gated: str, old: str) -> str:
    """The convolution in onnxruntime's own operator. Its new state is not used: it takes padding for tokens."""
    gated = graph.op("Transpose", f"{path}/gated_time_last", gated, perm=[0, 2, 1])
    kernel = vector(graph, f"{path}.kernel", conv.kernel.t().unsqueeze(1))
    bias = "" if conv.bias is None else vector(graph, f"{path}.bias", conv.bias)
    kind = "CausalConvWithState"
    mixed, _ = graph.op_many(
        kind, f"{path}/{kind}", (gated, kernel, bias, old), (f"{path}/mixed_time_last", f"{path}/padded_state"), CONTRIB
    )
    return graph.op("Transpose", f"{path}/mixed", mixed, perm=[0, 2, 1])


def _attention(graph: Graph, i: int, attention: Attention, x: str, call: _Call) -> str:
    """Projections, per-head norms, then RoPE, cache and softmax in one fused operator."""
    path, width = f"layers.{i}.self_attn", attention.head_dim
    kv_heads = attention.k_proj.weight.shape[0] // width
    past = [
        graph.input(f"past_key_values.{i}.{name}", call.cache, _BATCH, kv_heads, _PAST, width)
        for name in ("key", "value")
    ]
    present = [f"present.{i}.key", f"present.{i}.value"]
    for name in present:
        graph.output(name, call.cache, _BATCH, kv_heads, "present_sequence_length", width)
    projections = {name: getattr(attention, name) for name in ("q_proj", "k_proj", "v_proj")}
    query, key, value = linears(graph, path, "qkv_proj", projections, x)
    query = _head_norm(graph, path, "q", attention.q_layernorm, query)
    key = _head_norm(graph, path, "k", attention.k_layernorm, key)
    if call.cache != graph.real:
        named = zip(("query", "key", "value"), (query, key, value), strict=True)
        query, key, value = (graph.cast(f"{path}/{name}", tensor, call.cache) for name, tensor in named)
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
    if call.cache != graph.real:
        mixed = graph.cast(f"{path}/attended", mixed, graph.real)
    return linear(graph, f"{path}.out_proj", attention.out_proj, mixed)


def _head_norm(graph: Graph, path: str, name: str, norm: RMSNorm, x: str) -> str:
    """RMSNorm of every head by itself, `[B, T, heads·head_dim]` in and out."""
    path, width = f"{path}.{name}_layernorm", norm.weight.shape[0]
    heads = graph.op("Reshape", f"{path}/heads", x, graph.ints(0, 0, -1, width))
    normed = _norm(graph, path, heads, vector(graph, f"{path}.weight", norm.weight), norm.eps)
    flat = graph.op("Reshape", f"{path}/flat", normed, graph.ints(0, 0, -1))
    graph.seen[path] = x, flat
    return flat


def _feed_forward(graph: Graph, path: str, mlp: FeedForward, x: str) -> str:
    """`w2(silu(w1 x) ⊙ w3 x)`; onnxruntime fuses the sigmoid and its product when it loads the file.

    w1 and w3 stay apart: as one product they cost 3 % of a decode step more (350M, int4), for the split that follows.
    """
    gate, up = linear(graph, f"{path}.w1", mlp.w1, x), linear(graph, f"{path}.w3", mlp.w3, x)
    silu = _mul(graph, f"{path}/silu", gate, graph.op("Sigmoid", f"{path}/sigmoid", gate))
    gated = _mul(graph, f"{path}/gated", silu, up)
    return linear(graph, f"{path}.w2", mlp.w2, gated)


def _mul(graph: Graph, name: str, a: str, b: str) -> str:
    return graph.op("Mul", name, a, b)
