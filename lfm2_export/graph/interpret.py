"""The steps of a network, computed by PyTorch itself with a decoder's own modules: the first table, and the plainest.

It is `decoder(…)` with every value at hand, which a proof uses to see many states and rows of one call.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from lfm2_export.graph.steps import Network, Step
from lfm2_export.model import operators
from lfm2_export.model.attention import Attention
from lfm2_export.model.decoder import Decoder
from lfm2_export.model.experts import ExpertChoice
from lfm2_export.model.short_conv import ShortConv

Values = dict[str, Tensor]
Optional = Tensor | None


def interpret(network: Network, decoder: Decoder, given: Mapping[str, Tensor], wanted: Collection[str]) -> Values:
    """Compute the `wanted` values of one call, by name.

    `given` holds what comes in (`tokens [B, T]`, `position [B]`, `length [B]` of a padded network, `state.…`), and may
    hold any other value: only steps between what is given and what is wanted are computed. A value is let go of when
    its last reader is done.
    """
    values: dict[str, Optional] = {"": None, **given}
    steps = _needed(network.steps, given, wanted)
    last = {value: number for number, step in enumerate(steps) for value in step.inputs}
    kept = {"", *wanted, *given}
    for number, step in enumerate(steps):
        result = _TABLE[step.kind](step, decoder, *(values[name] for name in step.inputs))
        outputs = (result,) if isinstance(result, Tensor) else result
        values |= dict(zip(step.outputs, outputs, strict=False))  # a last output that nobody reads has no name
        for name in step.inputs:
            if last[name] == number and name not in kept:
                values.pop(name, None)
    return {name: cast(Tensor, values[name]) for name in wanted}


def _needed(steps: Sequence[Step], given: Collection[str], wanted: Collection[str]) -> list[Step]:
    needed = set(wanted) - set(given)
    found = []
    for step in reversed(steps):
        if needed & set(step.outputs):
            found.append(step)
            needed |= set(step.inputs) - set(given)
    return found[::-1]


def _module(step: Step, decoder: Decoder, *inputs: Tensor) -> Tensor:
    return cast(Tensor, decoder.get_submodule(step.path)(*inputs))


def _short_conv(step: Step, decoder: Decoder, gated: Tensor, state: Tensor, *rest: Optional) -> tuple[Tensor, ...]:
    conv = decoder.get_submodule(step.path)
    assert isinstance(conv, ShortConv)
    return operators.short_conv(gated, state, conv.kernel, conv.bias, rest[-1])


def _attention(step: Step, decoder: Decoder, *inputs: Tensor) -> tuple[Tensor, ...]:
    attention = decoder.get_submodule(step.path)
    assert isinstance(attention, Attention)
    query, key, value, past_key, past_value, position = inputs
    return operators.attention(query, key, value, past_key, past_value, position, attention.cache_dtype)


def _choose_experts(step: Step, decoder: Decoder, scores: Tensor, *_: Optional) -> tuple[Tensor, ...]:
    choice = decoder.get_submodule(step.path)
    assert isinstance(choice, ExpertChoice)
    return operators.choose_experts(scores, choice.expert_bias, choice.count, choice.normalized, choice.scale)


def _plain(function: Callable[..., Any]) -> Callable[..., Any]:
    return lambda step, decoder, *inputs: function(*inputs, *step.arguments)


_TABLE: dict[str, Callable[..., Tensor | tuple[Tensor, ...]]] = {
    **dict.fromkeys(("embedding", "linear", "rms_norm", "head_norm", "experts"), _module),
    "add": _plain(torch.add),
    "mul": _plain(torch.mul),
    "silu": _plain(F.silu),
    "rotary": _plain(operators.rotary),
    "rotate": _plain(operators.rotate),
    "last_valid": _plain(operators.last_valid),
    "short_conv": _short_conv,
    "attention": _attention,
    "sliding_attention": _plain(operators.sliding_attention),
    "gate_heads": _plain(operators.gate_heads),
    "choose_experts": _choose_experts,
}
