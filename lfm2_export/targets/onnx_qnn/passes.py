"""What the NPU wants of the trace: queries and keys with their heads apart, and the heads before the rows."""

from __future__ import annotations

from typing import NamedTuple

from lfm2_export.checkpoint.config import LFM2Config
from lfm2_export.graph.steps import Network, Step


class _Rotated(NamedTuple):
    norm: Step
    rotation: Step


def heads_apart(network: Network, config: LFM2Config) -> Network:
    """Make one step, `rotated_heads`, of a query's or key's norm and rotation, where attention alone reads it.

    It gives `[1, heads, N, D]`, the very layout of the cache, so a rotated key is the new state: `attention_of_heads`
    gives out only the mixed values and the new value. (The state of sliding attention is another: there the attention
    still gives out both.) The argument of `rotated_heads` is how many heads there are; its second output is the norm's,
    `[1, N·heads, D]`.
    """
    rewritten: dict[Step, tuple[Step, ...]] = {}
    for attention in network.of_kind("attention", "sliding_attention"):
        query, key = (_rotated(network, value, attention) for value in attention.inputs[:2])
        if query is None or key is None:
            continue
        rotated, outputs = key.rotation.output, attention.outputs
        if attention.kind == "attention":
            mixed, rotated, new_value = outputs
            outputs = (mixed, new_value)
        rewritten |= {query.norm: (), key.norm: ()}
        rewritten[query.rotation] = (_heads(query, query.rotation.output, config.num_attention_heads),)
        rewritten[key.rotation] = (_heads(key, rotated, config.num_key_value_heads),)
        inputs = (query.rotation.output, rotated, *attention.inputs[2:])
        rewritten[attention] = (attention._replace(kind=f"{attention.kind}_of_heads", inputs=inputs, outputs=outputs),)
    return network._replace(steps=tuple(new for step in network.steps for new in rewritten.get(step, (step,))))


def _heads(rotated: _Rotated, output: str, count: int) -> Step:
    inputs = (rotated.norm.inputs[0], *rotated.rotation.inputs[1:])
    return Step("rotated_heads", rotated.norm.path, inputs, (output, rotated.norm.output), (count,))


def _rotated(network: Network, value: str, attention: Step) -> _Rotated | None:
    """A norm and a rotation behind it, if a value is made by them for `attention` alone."""
    rotation = network.maker(value)
    norm = network.maker(rotation.inputs[0]) if rotation is not None and rotation.kind == "rotate" else None
    if rotation is None or norm is None or norm.kind != "head_norm":
        return None
    alone = network.users(value) == (attention,) and network.users(norm.output) == (rotation,)
    return _Rotated(norm, rotation) if alone else None
