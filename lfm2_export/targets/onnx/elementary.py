"""What the decoder's graph and the vision encoder's write alike: norms and SiLU."""

from __future__ import annotations

from lfm2_export.model.layers import RMSNorm
from lfm2_export.targets.onnx_graph import Graph


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
