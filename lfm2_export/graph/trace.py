"""The model of a shape, traced: `model/` run once on symbols, from its config alone, before a weight is read.

A module without parts (a product, a norm, the lookup) is one step, and so are all experts of a layer and each operator
of `model/operators.py`. The trace of a model is the same however its weights are quantized. `torch.export` gives the
same steps, a hundred times slower (`graph/export.py`, for whoever lowers aten); a test holds the two against each
other.
"""

from __future__ import annotations

import operator
from collections import Counter
from functools import lru_cache
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import fx, nn

from lfm2_export.checkpoint.config import LFM2Config
from lfm2_export.graph.passes import without_dead_steps
from lfm2_export.graph.steps import LENGTH, POSITION, STATE, TOKENS, Network, Step
from lfm2_export.model.decoder import skeleton
from lfm2_export.model.experts import Experts
from lfm2_export.model.layers import HeadNorm, RMSNorm
from lfm2_export.model.operators import NAMESPACE

_MODULES: tuple[tuple[type[nn.Module], str], ...] = (  # the first that fits
    (nn.Embedding, "embedding"),
    (nn.Linear, "linear"),
    (HeadNorm, "head_norm"),
    (RMSNorm, "rms_norm"),
    (Experts, "experts"),
)
_FUNCTIONS: dict[Any, str] = {operator.add: "add", operator.mul: "mul", F.silu: "silu"}


@lru_cache(maxsize=16)
def trace(config: LFM2Config, padded: bool) -> Network:
    """The network of that shape, computing the logits of the last valid token and the new state.

    `padded`: calls have an input `length`; otherwise all of their tokens are valid, and the value's name is "".
    """
    decoder = skeleton(config)
    fixed: dict[str, Any] = {"all_logits": False} if padded else {"all_logits": False, LENGTH: None}
    graph = _Tracer().trace(decoder, concrete_args=fixed)
    return without_dead_steps(_network(graph, decoder))


class _Tracer(fx.Tracer):
    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return not any(m.children()) or isinstance(m, Experts)


def _network(graph: fx.Graph, decoder: nn.Module) -> Network:
    steps: list[Step] = []
    values: dict[Any, str] = {}  # node → its value's name; of several values, a node each that takes one out
    taken: Counter[str] = Counter()

    def named(name: str) -> str:
        taken[name] += 1
        return name if taken[name] == 1 else f"{name}_{taken[name]}"

    for node in graph.nodes:
        if node.op == "placeholder":
            values[node] = next((name for name in (TOKENS, POSITION, LENGTH) if node.target == name), "")
        elif node.op == "call_module":
            module = decoder.get_submodule(node.target)
            values[node] = named(node.target)
            arguments = (module.eps,) if isinstance(module, RMSNorm) else ()
            inputs = tuple(values[given] for given in node.args)
            steps.append(Step(_kind(module), node.target, inputs, (values[node],), arguments))
        elif node.target is operator.getitem:
            source, key = node.args
            values[node] = f"{STATE}{key}" if source.op == "placeholder" else f"{values[source]}:{key}"
        elif node.op == "call_function" and (kind := _function(node.target)):
            scope = next(reversed(node.meta.get("nn_module_stack", {"": None})), "")
            values[node] = named(f"{scope}/{kind}".lstrip("/"))
            steps.append(_step(node, kind, scope, values))
        elif node.op == "output":
            logits, new = node.args[0]
    return Network(tuple(steps), values[logits], {name: values[value] for name, value in new.items()})


def _kind(module: nn.Module) -> str:
    return next(kind for known, kind in _MODULES if isinstance(module, known))


def _function(target: Any) -> str:
    """The kind of a function's step; "" for the tracer's own checks of what was fixed."""
    if isinstance(target, torch._ops.OpOverload) and target.namespace == NAMESPACE:
        return target._opname
    return _FUNCTIONS.get(target, "")


def _step(node: fx.Node, kind: str, scope: str, values: dict[Any, str]) -> Step:
    inputs, arguments = [], []
    for given in node.args:
        if isinstance(given, fx.Node):
            if given.op != "get_attr":  # a weight is known by the module's path
                inputs.append(values[given])
        elif given is None:
            inputs.append("")
        else:
            arguments.append(given)
    results = [user for user in node.users if user.target is operator.getitem]
    count = 1 + max((cast(int, user.args[1]) for user in results), default=-1)
    outputs = tuple(f"{values[node]}:{number}" for number in range(count)) or (values[node],)
    return Step(kind, scope, tuple(inputs), outputs, tuple(arguments))
