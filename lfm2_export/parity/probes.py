"""Looking inside a decoder: what goes into each of its modules and what comes out, and leading it along other values.

A point is a module's input or output, so nothing in `model/` has to know that it is watched: residual sums, gates and
attention are what enters the next norm or product. Both sides of a comparison use the same names.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lfm2_export.artifact.manifest import point_name
from lfm2_export.model.decoder import Decoder

ProbeValues = dict[str, np.ndarray]  # point → values fp32, in the order in which they are computed
Visit = Callable[[str, Tensor], Tensor | None]  # may return what shall be used instead


@contextmanager
def visited(decoder: Decoder, visit: Visit) -> Iterator[None]:
    """Call `visit(point, value)` for the input and output of every innermost module, in the order of computation."""
    with ExitStack() as hooks:
        for path, module in decoder.named_modules():
            if not any(module.children()):
                _watch(hooks, path, module, visit)
        yield


@contextmanager
def recorded(decoder: Decoder) -> Iterator[ProbeValues]:
    """Record every point of the calls made inside the block; of several calls, the last one's."""
    probes: ProbeValues = {}

    def keep(point: str, value: Tensor) -> None:
        probes.pop(point, None)
        probes[point] = value.cpu().numpy().copy()

    with visited(decoder, keep):
        yield probes


def block_outputs(decoder: Decoder, probes: Mapping[str, np.ndarray]) -> list[np.ndarray]:
    """The residual stream after each layer: what enters the next layer's norm, or the final one."""
    layers = len(decoder.layers)
    following = [f"layers.{layer}.operator_norm" for layer in range(1, layers)] + ["embedding_norm"]
    return [probes[point_name(path, "in")] for path in following]


def describe(point: str, layers: int) -> tuple[int | None, str]:
    """Return (layer, operation) that made a point's value; no layer for the embedding, the final norm and the head."""
    path, _, side = point.rpartition(":")
    head, _, rest = path.partition(".")
    layer, _, module = rest.partition(".")
    if point == point_name("embedding_norm", "in"):
        return layers - 1, "residual sum after feed_forward"
    if head != "layers":
        return (None, path) if side == "out" else (None, f"input of {path}")
    number = int(layer)
    if side == "out":
        return number, module
    if module == "operator_norm":
        return (number - 1, "residual sum after feed_forward") if number else (None, "embed_tokens")
    operations = {
        "ffn_norm": "residual sum after the mixer",
        "feed_forward.w2": "SwiGLU gate",
        "conv.out_proj": "gated convolution",
        "self_attn.out_proj": "attention",
    }
    return number, operations.get(module, f"input of {module}")


def _watch(hooks: ExitStack, path: str, module: torch.nn.Module, visit: Visit) -> None:
    def before(_: Any, given: tuple[Tensor, ...]) -> tuple[Tensor, ...] | None:
        changed = visit(point_name(path, "in"), given[0])
        return None if changed is None else (changed, *given[1:])

    def after(_: Any, given: Any, result: Tensor) -> Tensor | None:
        return visit(point_name(path, "out"), result)

    hooks.enter_context(module.register_forward_pre_hook(before))
    hooks.enter_context(module.register_forward_hook(after))
