"""The caller's side of the NPU's `slice` transport: state kept here, new slices written back after each call."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lfm2_export.artifact.manifest import PROBE, Manifest, MethodSpec
from lfm2_export.checkpoint.config import from_dict
from lfm2_export.model.state import State, is_cache
from lfm2_export.runtimes.session import Session, Snapshot, check_room, check_snapshot
from lfm2_export.static_calls import DECODE, PREFILL, call_inputs, graph_inputs, static_state, write_back

# (method, tokens, position, state) → logits, the new pieces of the state in its order, what probes show; valid until
# the next call
Call = Callable[[str, Sequence[int], int, State], Sequence[Tensor]]


def pte_call(run: Callable[[str, tuple[Tensor, ...]], Sequence[Tensor]], manifest: Manifest) -> Call:
    """Return a call that feeds `run(method, inputs)` what a `.pte` takes."""
    rows = {method.name: method.max_tokens for method in manifest.methods}

    def call(method: str, tokens: Sequence[int], position: int, state: State) -> Sequence[Tensor]:
        return run(method, call_inputs(tokens, rows[method], position, manifest.window, state))

    return call


def graph_call(opened: Mapping[str, Any], manifest: Manifest) -> Call:
    """Return a call of the ONNX graphs that these onnxruntime sessions, by method, have opened."""
    config = from_dict(manifest.source.config, "manifest.json")
    methods = {method.name: method for method in manifest.methods}

    def call(method: str, tokens: Sequence[int], position: int, state: State) -> Sequence[Tensor]:
        inputs = graph_inputs(config, tokens, position, methods[method].max_tokens, manifest.window) | state
        names = ["logits", *(f"new_{name}" for name in state), *methods[method].probes]
        outputs = opened[method].run(names, {name: tensor.numpy() for name, tensor in inputs.items()})
        return [torch.from_numpy(output) for output in outputs]

    return call


class SliceSession(Session):
    """One conversation with a pair of methods, wherever they run (see `Session` and `static_calls.py`).

    Chunks go through prefill, the last one padded; a lone token is decoded. With `pad_to` even a lone token takes the
    padded way.
    """

    pads = True

    def __init__(self, call: Call, manifest: Manifest, runtime: str, version: str) -> None:
        self.runtime, self.version, self.window = runtime, version, manifest.window
        self._call = call
        self._config = from_dict(manifest.source.config, "manifest.json")
        self._methods = {method.name: method for method in manifest.methods}
        self._seen: list[dict[str, np.ndarray]] = []  # of each call of the last `prefill`
        self.reset()

    @property
    def position(self) -> int:
        return self._position

    def reset(self) -> None:
        self._position = 0
        self._state = static_state(self._config, self.window)

    def prefill(self, tokens: Sequence[int], pad_to: int | None = None) -> np.ndarray:
        check_room(self._position, len(tokens), self.window, self._config.vocab_size, tokens)
        self._seen.clear()
        most = self._methods[PREFILL].max_tokens
        for start in range(0, len(tokens), most):
            chunk = tokens[start : start + most]
            logits = self._run(DECODE if len(chunk) == 1 and pad_to is None else PREFILL, chunk)
        return logits

    def state(self) -> Snapshot:
        return Snapshot(self._position, {name: self._view(name).numpy().copy() for name in self._state})

    def restore(self, snapshot: Snapshot) -> None:
        shapes = {n: t.shape if is_cache(n) else t.transpose(1, 2).shape for n, t in self._state.items()}
        check_snapshot(snapshot, {name: tuple(shape) for name, shape in shapes.items()})
        self.reset()
        self._position = snapshot.position
        for name, values in snapshot.tensors.items():
            self._view(name).copy_(torch.from_numpy(values))

    def probes(self) -> dict[str, np.ndarray]:
        calls = self._seen
        return {point: np.concatenate([call[point] for call in calls]) for point in calls[0]} if calls else {}

    def _view(self, name: str) -> Tensor:
        """A state tensor in the contract's shape, a cache cut to the position."""
        tensor = self._state[name]
        return tensor[:, :, : self._position] if is_cache(name) else tensor.transpose(1, 2)

    @torch.no_grad()
    def _run(self, method: str, tokens: Sequence[int]) -> np.ndarray:
        logits, *rest = self._call(method, tokens, self._position, self._state)
        new, shown = rest[: len(self._state)], rest[len(self._state) :]
        self._seen.append(_probed(self._methods[method], shown, len(tokens)))
        write_back(self._state, new, self._position, len(tokens))
        self._position += len(tokens)
        return logits.reshape(-1).numpy().copy()


def _probed(method: MethodSpec, values: Sequence[Tensor], count: int) -> dict[str, np.ndarray]:
    """What a call's probes show of its `count` tokens, by point."""
    return {
        name.removeprefix(PROBE): _by_row(value, method.max_tokens)[:count].numpy().copy()
        for name, value in zip(method.probes, values, strict=True)
    }


def _by_row(value: Tensor, rows: int) -> Tensor:
    """Return a view `[rows, width]` of what a module of a method gets or gives, heads side by side.

    `value` is `[1, rows, width]`, or by head `[1, rows·heads, D]` or `[1, heads, rows, D]`; what only the last token
    has, `[1, 1, width]`, stays one row.
    """
    if value.dim() == 4:
        value = value.transpose(1, 2)
    return value[0] if value.shape[1] < rows else value.reshape(rows, -1)
