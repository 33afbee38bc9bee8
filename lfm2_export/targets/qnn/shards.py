"""Several HTP contexts instead of one, for a model that one cannot hold.

HTP addresses 4 GB per context. A larger model is cut between layers into shards, each a context of its own, in both
methods at the same places, so that the methods of a shard can still share weights. The host hands the activation on:
a plain copy, which ExecuTorch's partitioner keeps outside a delegate for this very purpose.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from executorch.backends.qualcomm._passes import FoldQDQ, TagQuantIO
from executorch.backends.qualcomm._passes.qnn_pass_manager import get_qnn_pass_manager_cls
from executorch.backends.qualcomm.serialization.qc_schema import QnnExecuTorchBackendType
from executorch.backends.qualcomm.utils.constants import (
    QCOM_PASS_ACTIVATE_KEY,
    QCOM_PASS_ARGS_KWARGS_DEFAULTS_KEY,
    QCOM_QUANT_ATTRS,
)
from executorch.exir.dialects._ops import ops as exir_ops
from executorch.exir.pass_base import ExportPass
from torch.fx import GraphModule, Node
from torch.fx.passes.infra.pass_base import PassResult

from lfm2_export.errors import LoweringError
from lfm2_export.graph.steps import layer_of

CUT = "dim_order_ops._clone_dim_order"  # how a delegation report names the copy
_COPY = exir_ops.edge.dim_order_ops._clone_dim_order.default


def cutting(starts: Sequence[int]) -> Mapping[str, Any]:
    """Arguments for ExecuTorch's lowering that cut a network before the layers `starts`."""
    if not starts:
        return {}
    manager = get_qnn_pass_manager_cls(QnnExecuTorchBackendType.kHtpBackend)
    order = manager.get_passes_dependency_for_capture_program()
    order[_Cut] = [FoldQDQ]  # scales are attributes by then, and no node stands between an activation and its user
    order[TagQuantIO] = [*order[TagQuantIO], _Cut]
    passes = manager.get_capture_program_passes()
    passes[_Cut] = {QCOM_PASS_ACTIVATE_KEY: True, QCOM_PASS_ARGS_KWARGS_DEFAULTS_KEY: {"starts": tuple(starts)}}
    return {"dep_table": order, "passes_job": passes}


class _Cut(ExportPass):
    """Puts a copy where the activation enters each of the layers `starts`."""

    def __init__(self, starts: Sequence[int]) -> None:
        super().__init__()
        self._starts = starts

    def call(self, graph_module: GraphModule) -> PassResult:
        for layer in self._starts:
            _copy_after(graph_module, _entering(graph_module, layer))
        graph_module.recompile()
        return PassResult(graph_module, True)


def _entering(module: GraphModule, layer: int) -> Node:
    """What the first step of a layer takes: the activation that all before it has made."""
    for node in module.graph.nodes:
        if node.op == "call_function" and _layer_of(node) == layer:
            return node.all_input_nodes[0]
    raise LoweringError(f"no operator of layer {layer} was found to cut the network before")


def _layer_of(node: Node) -> int | None:
    stack = list((node.meta.get("nn_module_stack") or {}).values())
    return layer_of(stack[-1][0]) if stack else None


def _copy_after(module: GraphModule, node: Node) -> None:
    users = list(node.users)
    with module.graph.inserting_after(node):
        copy = module.graph.call_function(_COPY, (node,))
    copy.meta["val"] = node.meta["val"]
    if QCOM_QUANT_ATTRS in node.meta:
        copy.meta[QCOM_QUANT_ATTRS] = node.meta[QCOM_QUANT_ATTRS]
    for user in users:
        user.replace_input_with(node, copy)
