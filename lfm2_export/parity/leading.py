"""Eager PyTorch beside an artifact, point by point: running freely, and led along the artifact's own values.

Led, each value is replaced by the artifact's as soon as it has been computed, so that every operation gets the inputs
that the artifact's had.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, fx

from lfm2_export.artifact.manifest import PROBE, Manifest
from lfm2_export.model.decoder import Decoder
from lfm2_export.parity.probes import ProbeValues, recorded, visited
from lfm2_export.runtimes._slices import SliceSession, pte_call
from lfm2_export.runtimes.eager import EagerSession


class Guided(ABC):
    """A model in eager PyTorch that holds two conversations over the same tokens, a free one and a led one."""

    @abstractmethod
    def free(self, tokens: Sequence[int]) -> ProbeValues:
        """Go on freely; return the value of every point."""

    @abstractmethod
    def led(self, tokens: Sequence[int], ours: ProbeValues) -> ProbeValues:
        """Go on led along `ours`; return what each of those points would have been, given the points before it."""


class GuidedDecoder(Guided):
    """A decoder; its modules have the points."""

    def __init__(self, decoder: Decoder, window: int) -> None:
        self._decoder = decoder
        self._free, self._led = EagerSession(decoder, window), EagerSession(decoder, window)

    def free(self, tokens: Sequence[int]) -> ProbeValues:
        with recorded(self._decoder) as values:
            self._free.prefill(tokens)
        return values

    def led(self, tokens: Sequence[int], ours: ProbeValues) -> ProbeValues:
        expected: ProbeValues = {}

        def visit(point: str, value: Tensor) -> Tensor | None:
            if point not in ours:
                return None
            expected[point] = value.numpy().copy()
            return torch.from_numpy(aligned(ours[point], expected[point]).copy())

        with visited(self._decoder, visit):
            self._led.prefill(tokens)
        return expected


class GuidedMethods(Guided):
    """The methods that a target makes its program of, rounding as that does; their last outputs are the points."""

    def __init__(self, methods: Mapping[str, fx.GraphModule], manifest: Manifest) -> None:
        self._methods = methods
        self._probes = {method.name: method.probes for method in manifest.methods}
        self._ours: ProbeValues = {}  # what the led conversation has not come to yet
        self._free = _session(lambda method, inputs: methods[method](*inputs), manifest)
        self._led = _session(self._run_led, manifest)

    def free(self, tokens: Sequence[int]) -> ProbeValues:
        self._free.prefill(tokens)
        return self._free.probes()

    def led(self, tokens: Sequence[int], ours: ProbeValues) -> ProbeValues:
        self._ours = dict(ours)
        self._led.prefill(tokens)
        return self._led.probes()

    def _run_led(self, method: str, inputs: tuple[Tensor, ...]) -> Sequence[Tensor]:
        tokens, _, length, *_ = inputs

        def given(name: str, value: Tensor) -> Tensor:
            """Eager's value with the artifact's in its valid rows; what padding holds no valid row sees."""
            led = value.clone()
            rows = led.transpose(1, 2)[0] if led.dim() == 4 else led[0]  # by head: [1, heads, rows, D]
            count = int(length) if len(rows) == tokens.shape[1] else 1  # 1: what only the last token has
            point = name.removeprefix(PROBE)
            valid, self._ours[point] = np.split(self._ours[point], [count])
            rows[:count] = torch.from_numpy(valid).view(count, *rows.shape[1:])
            return led

        leader = _Leader(self._methods[method], self._probes[method], given)
        results = leader.run(*inputs)
        return [*results[: -len(leader.expected)], *(leader.expected[name] for name in self._probes[method])]


def _session(run: Callable[[str, tuple[Tensor, ...]], Sequence[Tensor]], manifest: Manifest) -> SliceSession:
    return SliceSession(pte_call(run, manifest), manifest, "eager", torch.__version__)


class _Leader(fx.Interpreter):
    """Runs a method whose last outputs are probes, and replaces what each of them shows once it has been computed.

    `given(probe, value)` returns the replacement; `expected` has the values replaced, by probe.
    """

    def __init__(self, method: fx.GraphModule, probes: Sequence[str], given: Callable[[str, Tensor], Tensor]) -> None:
        super().__init__(method)
        self.expected: dict[str, Tensor] = {}
        self._given = given
        returned = cast(tuple[fx.Node, ...], method.graph.output_node().args[0])
        shown = zip(probes, returned[-len(probes) :], strict=True)
        # a quantized value is replaced where its integers are made: whatever reads it reads those
        self._at = {node.args[0] if _dequantizes(node) else node: (name, node) for name, node in shown}

    def run_node(self, n: fx.Node) -> Any:
        made = super().run_node(n)
        if n not in self._at:
            return made
        name, shown = self._at[n]
        if shown is n:
            self.expected[name] = made
            return self._given(name, made)
        self.expected[name] = self.call_function(shown.target, (made, *shown.args[1:]), shown.kwargs)
        (_, *scale), keywords = self.fetch_args_kwargs_from_env(n)
        return self.call_function(n.target, (self._given(name, self.expected[name]), *scale), keywords)


def _dequantizes(node: fx.Node) -> bool:
    """Whether a node makes values of integers. (The operator is known by name: only PT2E's import registers it.)"""
    return str(node.target) == "quantized_decomposed.dequantize_per_tensor.default"


def aligned(ours: np.ndarray, theirs: np.ndarray) -> np.ndarray:
    """Return `ours` in eager's shape; where eager has fewer rows, the last token's, the artifact's last ones."""
    width = theirs.shape[-1]
    return ours.reshape(-1, width)[-(theirs.size // width) :].reshape(theirs.shape)
