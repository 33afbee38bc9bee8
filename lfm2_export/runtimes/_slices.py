"""The caller's side of the NPU's `slice` transport: state kept here, new slices written back after each call."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lfm2_export.artifact.manifest import PROBE, Manifest
from lfm2_export.checkpoint.config import from_dict
from lfm2_export.model.state import State, is_cache
from lfm2_export.qualcomm.calls import DECODE, PREFILL, call_inputs, graph_inputs, npu_state, write_back
from lfm2_export.runtimes.session import Session, Snapshot, check_room, check_snapshot

# (method, tokens, position, state) → logits and the new pieces of the state, in its order; valid until the next call
Call = Callable[[str, Sequence[int], int, State], Sequence[Tensor]]


def pte_call(run: Callable[[str, tuple[Tensor, ...]], Sequence[Tensor]], manifest: Manifest) -> Call:
    """Return a call that feeds `run(method, inputs)` what a `.pte` takes."""
    rows = {method.name: method.max_tokens for method in manifest.methods}

    def call(method: str, tokens: Sequence[int], position: int, state: State) -> Sequence[Tensor]:
        return run(method, call_inputs(tokens, rows[method], position, manifest.window, state))

    return call


class SliceSession(Session):
    """One conversation with a pair of methods, wherever they run (see `Session` and `qualcomm/calls.py`).

    Chunks go through prefill, the last one padded; a lone token is decoded. With `pad_to` even a lone token takes the
    padded way.
    """

    pads = True

    def __init__(self, call: Call, manifest: Manifest, runtime: str, version: str) -> None:
        self.runtime, self.version, self.window = runtime, version, manifest.window
        self._call = call
        self._config = from_dict(manifest.source.config, "manifest.json")
        self._chunk = next(method.max_tokens for method in manifest.methods if method.name == PREFILL)
        self.reset()

    @property
    def position(self) -> int:
        return self._position

    def reset(self) -> None:
        self._position = 0
        self._state = npu_state(self._config, self.window)

    def prefill(self, tokens: Sequence[int], pad_to: int | None = None) -> np.ndarray:
        check_room(self._position, len(tokens), self.window, self._config.vocab_size, tokens)
        for start in range(0, len(tokens), self._chunk):
            chunk = tokens[start : start + self._chunk]
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

    def _view(self, name: str) -> Tensor:
        """A state tensor in the contract's shape, a cache cut to the position."""
        tensor = self._state[name]
        return tensor[:, :, : self._position] if is_cache(name) else tensor.transpose(1, 2)

    @torch.no_grad()
    def _run(self, method: str, tokens: Sequence[int]) -> np.ndarray:
        logits, *new = self._call(method, tokens, self._position, self._state)
        write_back(self._state, new, self._position, len(tokens))
        self._position += len(tokens)
        return logits.reshape(-1).numpy().copy()


class GraphSession(SliceSession):
    """The same with a pair of ONNX graphs, opened by onnxruntime, and the points that they output."""

    def __init__(self, opened: Mapping[str, Any], manifest: Manifest, runtime: str, version: str) -> None:
        """Take onnxruntime's sessions, by method."""
        self._opened = opened
        self._rows = {method.name: method.max_tokens for method in manifest.methods}
        self._probes = {m.name: [o.name for o in m.outputs if o.name.startswith(PROBE)] for m in manifest.methods}
        self._seen: list[dict[str, np.ndarray]] = []  # each method call's points, of the last `prefill`
        super().__init__(self._graph, manifest, runtime, version)

    def prefill(self, tokens: Sequence[int], pad_to: int | None = None) -> np.ndarray:
        self._seen.clear()
        return super().prefill(tokens, pad_to)

    def probes(self) -> dict[str, np.ndarray]:
        seen = self._seen
        return {point: np.concatenate([call[point] for call in seen]) for point in seen[0]} if seen else {}

    def _graph(self, method: str, tokens: Sequence[int], position: int, state: State) -> Sequence[Tensor]:
        rows, probes = self._rows[method], self._probes[method]
        inputs = graph_inputs(self._config, tokens, position, rows, self.window) | state
        names = ["logits", *(f"new_{name}" for name in state)]
        found = self._opened[method].run([*names, *probes], {name: tensor.numpy() for name, tensor in inputs.items()})
        points = zip(probes, found[len(names) :], strict=True)
        self._seen.append({name.removeprefix(PROBE): _valid(value, rows, len(tokens)) for name, value in points})
        return [torch.from_numpy(output) for output in found[: len(names)]]


def _valid(value: np.ndarray, rows: int, count: int) -> np.ndarray:
    """`[1, rows·n, width]` → `[count, n·width]`, without the padding; what only the last token has stays one row."""
    return value[0] if value.shape[1] < rows else value.reshape(rows, -1)[:count]
