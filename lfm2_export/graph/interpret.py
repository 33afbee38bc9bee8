"""The steps of a network, computed by PyTorch itself with a model's own modules: the first table, and the plainest.

It is `decoder(…)`, or a vision encoder's call, with every value at hand, which a proof uses to see many states and rows
of one call.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lfm2_export.graph.steps import Network, Step
from lfm2_export.model import operators
from lfm2_export.model.attention import Attention
from lfm2_export.model.experts import ExpertChoice
from lfm2_export.model.short_conv import ShortConv
from lfm2_export.model.vision import grid as grids
from lfm2_export.model.vision.lfm3 import GridConv
from lfm2_export.model.vision.siglip2 import Siglip2Tower

Values = dict[str, Tensor]
Optional = Tensor | None


def interpret(network: Network, model: nn.Module, given: Mapping[str, Tensor], wanted: Collection[str]) -> Values:
    """Compute the `wanted` values of one call, by name.

    `model` is what was traced. `given` holds what comes in (`tokens [B, T]`, `position [B]`, `length [B]` of a padded
    network, `state.…`; `patches`, `grid`), and may hold any other value: only steps between what is given and what is
    wanted are computed. A value is let go of when its last reader is done.
    """
    values: dict[str, Optional] = {"": None, **given}
    steps = _needed(network.steps, given, wanted)
    last = {value: number for number, step in enumerate(steps) for value in step.inputs}
    kept = {"", *wanted, *given}
    for number, step in enumerate(steps):
        result = _TABLE[step.kind](step, model, *(values[name] for name in step.inputs))
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


def _module(step: Step, model: nn.Module, *inputs: Tensor) -> Tensor:
    return cast(Tensor, model.get_submodule(step.path)(*inputs))


def _short_conv(step: Step, model: nn.Module, gated: Tensor, state: Tensor, *rest: Optional) -> tuple[Tensor, ...]:
    conv = model.get_submodule(step.path)
    assert isinstance(conv, ShortConv)
    return operators.short_conv(gated, state, conv.kernel, conv.bias, rest[-1])


def _attention(step: Step, model: nn.Module, *inputs: Tensor) -> tuple[Tensor, ...]:
    attention = model.get_submodule(step.path)
    assert isinstance(attention, Attention)
    query, key, value, past_key, past_value, position = inputs
    return operators.attention(query, key, value, past_key, past_value, position, attention.cache_dtype)


def _choose_experts(step: Step, model: nn.Module, scores: Tensor, *_: Optional) -> tuple[Tensor, ...]:
    choice = model.get_submodule(step.path)
    assert isinstance(choice, ExpertChoice)
    return operators.choose_experts(scores, choice.expert_bias, choice.count, choice.normalized, choice.scale)


def _with_positions(step: Step, model: nn.Module, x: Tensor, grid: Tensor) -> Tensor:
    tower = model.get_submodule(step.path)
    assert isinstance(tower, Siglip2Tower)
    return grids.with_positions(x, grid, tower.position_embedding.weight)


def _grid_conv(step: Step, model: nn.Module, x: Tensor, grid: Tensor) -> Tensor:
    conv = model.get_submodule(step.path)
    assert isinstance(conv, GridConv)
    return grids.grid_conv(x, grid, conv.kernel, conv.merge)


def _plain(function: Callable[..., Any]) -> Callable[..., Any]:
    return lambda step, model, *inputs: function(*inputs, *step.arguments)


_TABLE: dict[str, Callable[..., Tensor | tuple[Tensor, ...]]] = {
    **dict.fromkeys(("embedding", "linear", "rms_norm", "head_norm", "layer_norm", "gelu", "experts"), _module),
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
    "with_positions": _with_positions,
    "axial_rotary": _plain(grids.axial_rotary),
    "image_attention": _plain(grids.image_attention),
    "grid_conv": _grid_conv,
    "merged_blocks": _plain(grids.merged_blocks),
    "adjacent_blocks": _plain(grids.adjacent_blocks),
}
