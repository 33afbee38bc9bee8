"""A network walked in eager PyTorch: what its steps say, computed, whatever passes have made of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch.nn.functional as F
from torch import Tensor

from lfm2_export.graph.steps import LENGTH, POSITION, STATE, TOKENS, Network, Step
from lfm2_export.graph.walk import walk
from lfm2_export.model import operators
from lfm2_export.model.decoder import Decoder
from lfm2_export.model.state import State

Steps = dict[str, Callable[..., Any]]


def compute(
    network: Network, decoder: Decoder, tokens: Tensor, position: Tensor, length: Tensor | None, state: State
) -> tuple[Tensor, State]:
    """Return the network's logits and new state; arguments as the decoder's."""

    def module_of(step: Step) -> Any:
        return decoder.get_submodule(step.path)

    def by_module(step: Step, x: Tensor) -> Tensor:
        return module_of(step)(x)

    def linears(step: Step, x: Tensor) -> tuple[Tensor, ...]:
        return tuple(decoder.get_submodule(str(path))(x) for path in step.arguments)

    def add_norm(step: Step, x: Tensor, delta: Tensor) -> tuple[Tensor, Tensor]:
        return module_of(step)(x + delta), x + delta

    def rotary_attention(step: Step, query: Tensor, key: Tensor, *rest: Tensor) -> tuple[Tensor, ...]:
        *others, cos, sin = rest
        turned = (operators.rotate(each, cos, sin) for each in (query, key))
        return operators.attention(*turned, *others, *step.arguments)

    def rotated_heads(step: Step, x: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
        normed, (heads,) = module_of(step)(x), step.arguments
        return operators.rotate(normed, cos, sin).unflatten(-1, (heads, -1)).transpose(1, 2), normed

    def attention_of_heads(step: Step, query: Tensor, key: Tensor, *rest: Tensor) -> tuple[Tensor, Tensor]:
        flat = (each.transpose(1, 2).flatten(2) for each in (query, key))
        mixed, _, value = operators.attention(*flat, *rest, *step.arguments)
        return mixed, value

    def short_conv(step: Step, gated: Tensor, past: Tensor, *rest: Tensor) -> tuple[Tensor, Tensor]:
        conv = module_of(step)
        return operators.short_conv(gated, past, conv.kernel, conv.bias, rest[-1])

    steps: Steps = {
        **dict.fromkeys(("embedding", "linear", "rms_norm", "head_norm"), by_module),
        "linears": linears,
        "add": lambda _, a, b: a + b,
        "mul": lambda _, a, b: a * b,
        "silu": lambda _, x: F.silu(x),
        "add_norm": add_norm,
        "rotary": lambda step, *given: operators.rotary(*given, *step.arguments),
        "rotate": lambda _, *given: operators.rotate(*given),
        "attention": lambda step, *given: operators.attention(*given, *step.arguments),
        "rotary_attention": rotary_attention,
        "rotated_heads": rotated_heads,
        "attention_of_heads": attention_of_heads,
        "short_conv": short_conv,
        "last_valid": lambda _, *given: operators.last_valid(*given),
    }

    def write(step: Step, inputs: Sequence[Any]) -> Any:
        return steps[step.kind](step, *inputs)

    given = {TOKENS: tokens, POSITION: position, LENGTH: length, "": None}
    values = walk(network, given | {STATE + name: tensor for name, tensor in state.items()}, write)
    return values[network.logits], {name: values[value] for name, value in network.state.items()}
