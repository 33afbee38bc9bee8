"""Where the operators of a lowered graph ended up: calls into a delegate, and what was left outside it."""

from __future__ import annotations

import operator
from collections import Counter
from typing import Any

from executorch.exir.delegate import executorch_call_delegate
from torch import Tensor
from torch.fx import GraphModule, Node


def outside(module: GraphModule) -> tuple[int, dict[str, int]]:
    """(calls into a delegate, operators on tensors outside it by name, sorted)."""
    nodes = [node for node in module.graph.nodes if node.op == "call_function"]
    calls = sum(node.target is executorch_call_delegate for node in nodes)
    return calls, dict(sorted(Counter(_name(node) for node in nodes if _on_tensors(node)).items()))


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
