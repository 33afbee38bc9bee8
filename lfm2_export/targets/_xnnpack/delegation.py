"""Where the operators of a lowered graph ended up, and the refusal of a heavy one outside the delegate."""

from __future__ import annotations

import operator
from collections import Counter
from typing import Any

from executorch.exir.delegate import executorch_call_delegate
from torch import Tensor
from torch.fx import GraphModule, Node

from lfm2_export.artifact.manifest import Delegation
from lfm2_export.errors import LoweringError

# what XNNPACK is there for: one of these outside the delegate is slow enough to be a bug
_HEAVY = ("linear", "addmm", "bmm", "mm", "matmul", "convolution", "softmax")


def delegation(module: GraphModule, delegated: int) -> Delegation:
    """Count the delegate's calls, which hold `delegated` operators, and name the operators on tensors left outside.

    Raises LoweringError naming any matrix product, convolution or softmax outside the delegate.
    """
    nodes = [node for node in module.graph.nodes if node.op == "call_function"]
    calls = sum(node.target is executorch_call_delegate for node in nodes)
    outside = Counter(_name(node) for node in nodes if _on_tensors(node))
    heavy = {name: count for name, count in outside.items() if name.split(".")[1] in _HEAVY}
    if heavy:
        named = ", ".join(f"{name} × {count}" for name, count in sorted(heavy.items()))
        raise LoweringError(f"XNNPACK did not take every matrix product and convolution; left outside: {named}")
    return Delegation(backend="XNNPACK", calls=calls, delegated=delegated, fallback=dict(sorted(outside.items())))


def _on_tensors(node: Node) -> bool:
    if node.target in (executorch_call_delegate, operator.getitem):
        return False
    return any(isinstance(value, Tensor) for value in _flat(node.meta.get("val")))


def _flat(value: object) -> list[object]:
    return list(value) if isinstance(value, tuple | list) else [value]


def _name(node: Node) -> str:
    """`aten.embedding`, `llama.update_cache`: without its overload, seen through the wrapper of a mutating operator."""
    target: Any = node.args[0] if "auto_functionalized" in str(node.target) else node.target
    return str(target._schema.name).replace("::", ".")
