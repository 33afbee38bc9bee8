"""Attention's own way for a single token, put into a program after it has been traced.

The operator goes over the cache once for each head of a batch entry. A single token sees all there is, so the heads of
a group can stand in for tokens: keys and values are then read once for the whole group. The same branch written as
`torch.cond` is traced again by each of a dozen passes, which took a third of a lowering.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import torch
from executorch.exir.dialects._ops import ops
from torch.export import ExportedProgram
from torch.fx import Graph, GraphModule, Node


def branch_for_one(program: ExportedProgram) -> None:
    """Let every attention of an edge program take that way while a call has one token, in place.

    A model without groups is left as it is.
    """
    module, graph = program.graph_module, program.graph_module.graph
    alone: Node | None = None
    for number, whole in enumerate(graph.find_nodes(op="call_function", target=ops.edge.llama.custom_sdpa.default)):
        query, keys, values, start = whole.args[:4]
        _, count, groups, _ = query.meta["val"].shape
        if groups == 1:
            continue
        with graph.inserting_before(whole):
            alone = alone or _made(graph, operator.eq, _number(graph, count), 1)
            operands = [start, keys, values, query]
            branches = [
                _attached(module, f"{kind}_{number}", _branch(operands, attend))
                for kind, attend in (("one", _of_one), ("several", _of_several(whole)))
            ]
            both = graph.call_function(torch.ops.higher_order.cond, (alone, *branches, operands))
            both.meta["val"] = (whole.meta["val"],)
            chosen = _made(graph, operator.getitem, both, 0)
        whole.replace_all_uses_with(chosen)
        graph.erase_node(whole)
    module.recompile()


def _number(graph: Graph, count: torch.SymInt) -> Node:
    """The number of a call's tokens, which the program has counted."""
    counted = graph.find_nodes(op="call_function", target=torch.ops.aten.sym_size.int)
    return next(node for node in counted if str(node.meta["val"]) == str(count))


def _attached(module: GraphModule, name: str, branch: GraphModule) -> Node:
    module.register_module(name, branch)
    return module.graph.get_attr(name)


def _branch(operands: list[Any], attend: Callable[..., Node]) -> GraphModule:
    """A branch over values of the program outside."""
    graph = Graph()
    inputs = []
    for operand in operands:
        inputs.append(graph.placeholder(operand.name))
        inputs[-1].meta["val"] = operand.meta["val"]
    result = attend(graph, *inputs)
    graph.output((result,)).meta["val"] = (result.meta["val"],)
    return GraphModule(torch.nn.Module(), graph)


def _of_several(whole: Node) -> Callable[..., Node]:
    """The attention that is there."""

    def attend(graph: Graph, start: Node, keys: Node, values: Node, query: Node) -> Node:
        return _made(graph, whole.target, query, keys, values, start, *whole.args[4:])

    return attend


def _of_one(graph: Graph, start: Node, keys: Node, values: Node, query: Node) -> Node:
    """Attention of one token. The operator takes all columns before its start and as many more as it has tokens."""
    heads, _, groups, width = query.meta["val"].shape
    rows = _made(graph, ops.edge.aten.view_copy.default, query, [heads, -1, 1, width])
    before = _made(graph, operator.sub, _made(graph, operator.add, start, 1), groups)
    mixed = _made(graph, ops.edge.llama.custom_sdpa.default, rows, keys, values, before)
    return _made(graph, ops.edge.aten.view_copy.default, mixed, [heads, -1, groups, width])


def _made(graph: Graph, target: Any, *args: Any) -> Node:
    """A call with what it gives for the values of its inputs, which have shapes and no numbers."""
    node = graph.call_function(target, args)
    known = torch.fx.node.map_arg(args, lambda given: given.meta["val"])
    node.meta["val"] = target(*known)
    return node
