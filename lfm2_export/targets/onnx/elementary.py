"""What the decoder's graph and the vision encoder's write alike: norms, sums, products and SiLU."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

from lfm2_export.graph.steps import Step
from lfm2_export.model.layers import RMSNorm
from lfm2_export.targets.onnx_graph import Graph


class Place(Protocol):
    """What such an entry needs of the place where it is written."""

    @property
    def graph(self) -> Graph:
        """The graph."""

    def module(self, path: str) -> Any:
        """Return the network's module of that path."""


def rms_norm(graph: Graph, path: str, norm: RMSNorm, x: str) -> str:
    """Write onnxruntime's own RMSNorm, which it keeps in the default domain; the standard one needs opset 23."""
    gamma = graph.parameter(f"{path}.weight", norm.weight)
    kind, name = "SimplifiedLayerNormalization", f"{path}/norm"
    return graph.op(kind, name, x, gamma, axis=-1, epsilon=norm.eps, stash_type=1)


def head_norm(graph: Graph, path: str, norm: RMSNorm, x: str) -> str:
    """Write the same of every head of `x [B, T, heads·D]` by itself."""
    heads = graph.op("Reshape", f"{path}/heads", x, graph.ints(0, 0, -1, norm.weight.shape[0]))
    return graph.op("Reshape", f"{path}/flat", rms_norm(graph, path, norm, heads), graph.ints(0, 0, -1))


def silu(graph: Graph, name: str, x: str) -> str:
    """Write `x · sigmoid(x)`, which onnxruntime fuses when it loads the file."""
    return graph.op("Mul", name, x, graph.op("Sigmoid", f"{name}/sigmoid", x))


def _rms_norm(to: Place, step: Step, x: str) -> str:
    return rms_norm(to.graph, step.path, to.module(step.path), x)


def _head_norm(to: Place, step: Step, x: str) -> str:
    return head_norm(to.graph, step.path, to.module(step.path), x)


def _add(to: Place, step: Step, a: str, b: str) -> str:
    return to.graph.op("Add", step.output, a, b)


def _mul(to: Place, step: Step, a: str, b: str) -> str:
    return to.graph.op("Mul", step.output, a, b)


def _silu(to: Place, step: Step, x: str) -> str:
    return silu(to.graph, step.output, x)


ELEMENTARY: dict[str, Callable[..., str]] = {
    "rms_norm": _rms_norm,
    "head_norm": _head_norm,
    "add": _add,
    "mul": _mul,
    "silu": _silu,
}
