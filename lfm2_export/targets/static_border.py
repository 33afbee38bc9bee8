"""The border of a program of static shape: what its methods are called, take and return; what steps learn of a call."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from lfm2_export.artifact.manifest import PROBE, Delegation, MethodSpec, TensorSpec, point_name
from lfm2_export.checkpoint.config import LFM2Config
from lfm2_export.graph.steps import Network
from lfm2_export.graph.walk import probes
from lfm2_export.static_calls import DECODE, PREFILL, call_inputs, static_state

FILE = "model.pte"


class Sliding(NamedTuple):
    """What sliding attention needs to know of a call, over the columns of its state and the call's behind them."""

    last_columns: Tensor  # [W-1] int32, the last valid ones
    mask: Tensor  # [1, 1, groups·N, W-1 + N], added to scores


class Call(NamedTuple):
    """A call of N tokens, as far as steps need to know it."""

    positions: Tensor  # [N] int32, where each token stands in the window
    last_columns: Tensor  # [L-1] int32, of a conv state's columns and the call's behind them, the last valid ones
    mask: Tensor  # [1, 1, groups·N, window + N], added to scores; `groups` query heads share a key
    sliding: Sliding | None  # None in a model without sliding attention


class Border(nn.Module):
    """Makes a `Call` of a method's inputs, inside the program: there, indices are tensors."""

    rows: Tensor
    columns: Tensor
    sliding_columns: Tensor

    def __init__(self, config: LFM2Config, rows: int) -> None:
        super().__init__()
        self.groups = config.num_attention_heads // config.num_key_value_heads
        self.register_buffer("rows", torch.arange(rows, dtype=torch.int32))
        self.register_buffer("columns", torch.arange(config.conv_L_cache - 1, dtype=torch.int32))
        reach = (config.sliding_window or 1) - 1
        self.register_buffer("sliding_columns", torch.arange(reach, dtype=torch.int32))

    def forward(self, position: Tensor, length: Tensor, mask: Tensor, sliding_mask: Tensor | None) -> Call:
        """`position [1]` and `length [1]` int32; masks `[1, 1, N, window + N]` and `[1, 1, N, W-1 + N]`."""
        sliding = (
            Sliding(length + self.sliding_columns, self._grouped(sliding_mask)) if sliding_mask is not None else None
        )
        return Call(position + self.rows, length + self.columns, self._grouped(mask), sliding)

    def _grouped(self, mask: Tensor) -> Tensor:
        return torch.cat([mask] * self.groups, dim=2) if self.groups > 1 else mask


def rows_of(chunk: int) -> dict[str, int]:
    """Return the methods and the number of tokens of each one's calls; `chunk` is prefill's."""
    return {DECODE: 1, PREFILL: chunk}


def example(config: LFM2Config, window: int, rows: int) -> tuple[Tensor, ...]:
    """Return inputs to trace a method of `rows` rows with."""
    return call_inputs([0] * rows, rows, 0, window, static_state(config, window))


def probed_values(network: Network) -> dict[str, str]:
    """Return the points of a network (`point_name`) and the value that each one is; every value once."""
    points: dict[str, str] = {}  # by value
    for path, side, value in probes(network.steps):
        points.setdefault(value, point_name(path, side))
    return {point: value for value, point in points.items()}


def method_spec(
    name: str, rows: int, config: LFM2Config, window: int, report: Delegation | None, points: Iterable[str] = ()
) -> MethodSpec:
    """Return how the manifest describes a method of `rows` rows; `points` are those it also returns, of any shape."""
    state = static_state(config, window)
    inputs = [
        TensorSpec(name="tokens", dtype="int32", shape=[1, rows]),
        TensorSpec(name="position", dtype="int32", shape=[1]),
        TensorSpec(name="length", dtype="int32", shape=[1]),
        TensorSpec(name="mask", dtype="float32", shape=[1, 1, rows, window + rows]),
        *_sliding_mask(config, rows),
        *(TensorSpec(name=key, dtype="float32", shape=list(tensor.shape)) for key, tensor in state.items()),
    ]
    outputs = [TensorSpec(name="logits", dtype="float32", shape=[1, 1, config.vocab_size])]
    outputs += [_new(f"new_{key}", tensor, rows) for key, tensor in state.items()]
    outputs += [TensorSpec(name=f"{PROBE}{point}", dtype="float32", shape=[]) for point in points]
    return MethodSpec(name=name, file=FILE, inputs=inputs, outputs=outputs, max_tokens=rows, delegation=report)


def _sliding_mask(config: LFM2Config, rows: int) -> list[TensorSpec]:
    if not config.sliding_layers or config.sliding_window is None:
        return []
    return [TensorSpec(name="sliding_mask", dtype="float32", shape=[1, 1, rows, config.sliding_window - 1 + rows])]


def _new(name: str, tensor: Tensor, rows: int) -> TensorSpec:
    batch, first, second, *rest = tensor.shape
    shape = [batch, first, rows, *rest] if rest else [batch, first, second]
    return TensorSpec(name=name, dtype="float32", shape=list(shape))
