"""Whether a device computes long prompts: one bare GroupQueryAttention, whose answer is known beforehand.

From 32 tokens on onnxruntime's WebGPU attention takes another path, which is wrong on some drivers
(docs/webgpu-attention-bug.md). All queries are alike. Every eighth key is loud, scored 2 where the others are scored 0,
and its value is 1 where theirs is -1; so a row that sees L loud keys and Q others must be (L·e² − Q) / (L·e² + Q).
"""

from __future__ import annotations

from functools import cache
from typing import Any, NamedTuple

import numpy as np

from lfm2_export.runtimes.session import Check

TOKENS = 40  # of the prompt tried whole
CHUNK = 31  # the longest prompt that never takes the other path
LIMIT = 0.01  # of an answer from -1 to 1: in fp16 it is off by 0.001, the fault makes 0.14
_EVERY, _SCORE = 8, 2.0  # which keys are loud, and how loud
_WHOLE, _CHUNKED = f"attention: {TOKENS} tokens whole", f"attention: {TOKENS} tokens in chunks of {CHUNK}"


class Heads(NamedTuple):
    """The shape of the attention that is tried."""

    keys: int
    width: int
    half: bool = False  # fp16


class Found(NamedTuple):
    """The largest errors of the two ways to compute a prompt."""

    whole: float
    chunked: float

    @property
    def chunk(self) -> int | None:
        """The most tokens that one call may have; None: any number."""
        return None if self.whole <= LIMIT else CHUNK

    def checks(self) -> tuple[Check, ...]:
        """Both ways, for a report: the one that is used is judged, the other is shown."""
        wrong = f"wrong by {self.whole:.2g} on this device, so prompts go in chunks of {CHUNK}"
        unused = "prompts go whole: it is right"
        return (
            Check(_WHOLE, self.whole, LIMIT, wrong if self.chunk else None),
            Check(_CHUNKED, self.chunked, LIMIT, None if self.chunk else unused),
        )

    def __str__(self) -> str:
        return (
            f"prompts in chunks of {CHUNK}: whole ones are wrong by {self.whole:.2g}" if self.chunk else "prompts whole"
        )


@cache
def try_attention(heads: Heads, device: Any) -> Found:
    """Try both ways on an `OrtEpDevice`. Once in a process for each shape."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # errors only
    options.add_provider_for_devices([device], {})
    session = onnxruntime.InferenceSession(model(heads), options)
    return Found(_error(session, heads, TOKENS), _error(session, heads, CHUNK))


def model(heads: Heads) -> bytes:
    """The serialized ONNX model: the node, two query heads for each key head, the cache grown by each call."""
    from onnx import TensorProto, helper

    real = TensorProto.FLOAT16 if heads.half else TensorProto.FLOAT
    cache_shape = (1, heads.keys, "past", heads.width)
    queries, keys = 2 * heads.keys * heads.width, heads.keys * heads.width
    node = helper.make_node(
        "GroupQueryAttention",
        ["query", "key", "value", "past_key", "past_value", "seqlens_k", "total"],
        ["output", "present_key", "present_value"],
        domain="com.microsoft",
        num_heads=2 * heads.keys,
        kv_num_heads=heads.keys,
        scale=1 / heads.width,
    )
    inputs: dict[str, tuple[int | str, ...]]
    inputs = {"query": (1, "n", queries), "key": (1, "n", keys), "value": (1, "n", keys)}
    inputs |= {"past_key": cache_shape, "past_value": cache_shape}
    graph = helper.make_graph(
        [node],
        "attention",
        [
            *(helper.make_tensor_value_info(name, real, shape) for name, shape in inputs.items()),
            helper.make_tensor_value_info("seqlens_k", TensorProto.INT32, (1,)),
            helper.make_tensor_value_info("total", TensorProto.INT32, ()),
        ],
        [helper.make_tensor_value_info(name, real, None) for name in node.output],
    )
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=10).SerializeToString()


def _error(session: Any, heads: Heads, size: int) -> float:
    """The largest error of any row, TOKENS of them, in calls of at most `size`."""
    real = np.float16 if heads.half else np.float32
    loud = np.arange(TOKENS) % _EVERY == 0
    past = [np.zeros((1, heads.keys, 0, heads.width), real)] * 2
    rows = []
    for start in range(0, TOKENS, size):
        end = min(start + size, TOKENS)
        ones = np.ones((1, end - start, heads.keys * heads.width), real)
        given = {
            "query": np.repeat(ones, 2, axis=2),
            "key": ones * np.where(loud[start:end, None], _SCORE, 0).astype(real),
            "value": ones * np.where(loud[start:end, None], 1, -1).astype(real),
            "past_key": past[0],
            "past_value": past[1],
            "seqlens_k": np.array([end - 1], np.int32),
            "total": np.array(end, np.int32),
        }
        output, *past = session.run(None, given)
        rows.append(output[0].astype(np.float32))
    weight, others = loud.cumsum() * np.exp(_SCORE), (~loud).cumsum()
    expected = (weight - others) / (weight + others)
    error = float(np.abs(np.concatenate(rows) - expected[:, None]).max())
    return float("inf") if np.isnan(error) else error
