"""Where the operators of a lowered graph ended up: calls into a delegate, and what was left outside it."""

from __future__ import annotations

import operator
from collections import Counter
from collections.abc import Iterator
from typing import Any, cast

import torch
from executorch.exir.delegate import executorch_call_delegate
from torch import Tensor
from torch.fx import GraphModule, Node


def outside(module: GraphModule) -> tuple[int, dict[str, int]]:
    """(calls into a delegate, operators on tensors outside it by name, sorted)."""
    nodes = list(_called(module))
    calls = sum(node.target is executorch_call_delegate for node in nodes)
    return calls, dict(sorted(Counter(_name(node) for node in nodes if _on_tensors(node)).items()))


def _called(module: GraphModule) -> Iterator[Node]:
    """Every call of a function; instead of a condition, the calls in both of its branches."""
    for node in module.graph.nodes:
        if node.target is torch.ops.higher_order.cond:
            for branch in node.args[1:3]:
                yield from _called(cast(GraphModule, module.get_submodule(branch.target)))
        elif node.op == "call_function":
            yield node


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
