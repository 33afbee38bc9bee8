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
from lfm2_export.checkpoint.vision_config import VisionConfig
from lfm2_export.graph.passes import without_dead_steps
from lfm2_export.graph.steps import GRID, LENGTH, PATCHES, POSITION, STATE, TOKENS, Network, Step
from lfm2_export.model.decoder import skeleton
from lfm2_export.model.experts import Experts
from lfm2_export.model.layers import HeadNorm, RMSNorm
from lfm2_export.model.operators import NAMESPACE
from lfm2_export.model.vision.encoder import vision_skeleton
from lfm2_export.model.vision.gelu import GELU

_MODULES: tuple[tuple[type[nn.Module], str], ...] = (  # the first that fits
    (nn.Embedding, "embedding"),
    (nn.Linear, "linear"),
    (HeadNorm, "head_norm"),
    (RMSNorm, "rms_norm"),
    (Experts, "experts"),
    (nn.LayerNorm, "layer_norm"),
    (GELU, "gelu"),
)
_INPUTS = (TOKENS, POSITION, LENGTH, PATCHES, GRID)
_FUNCTIONS: dict[Any, str] = {operator.add: "add", operator.mul: "mul", F.silu: "silu"}


@lru_cache(maxsize=16)
def trace(config: LFM2Config, padded: bool) -> Network:
    """The network of that shape, computing the logits of the last valid token and the new state.

    `padded`: calls have an input `length`; otherwise all of their tokens are valid, and the value's name is "".
    """
    decoder = skeleton(config)
    fixed: dict[str, Any] = {"all_logits": False} if padded else {"all_logits": False, LENGTH: None}
    steps, values, (logits, new) = _steps(_Tracer().trace(decoder, concrete_args=fixed), decoder)
    state = {name: values[value] for name, value in new.items()}
    return without_dead_steps(Network(steps, values[logits], state))


@lru_cache(maxsize=16)
def trace_vision(config: VisionConfig) -> Network:
    """The image part of that shape, computing the embeddings of images whose patches and grids come in."""
    encoder = vision_skeleton(config)
    steps, values, embeddings = _steps(_Tracer().trace(encoder), encoder)
    return Network(steps, values[embeddings], {})


class _Tracer(fx.Tracer):
    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return not any(m.children()) or isinstance(m, Experts)


def _steps(graph: fx.Graph, model: nn.Module) -> tuple[tuple[Step, ...], dict[Any, str], Any]:
    """The steps, the name of each node's value, and what the model returns, made of nodes."""
    steps: list[Step] = []
    values: dict[Any, str] = {}  # node → its value's name; of several values, a node each that takes one out
    taken: Counter[str] = Counter()

    def named(name: str) -> str:
        taken[name] += 1
        return name if taken[name] == 1 else f"{name}_{taken[name]}"

    for node in graph.nodes:
        if node.op == "placeholder":
            values[node] = node.target if node.target in _INPUTS else ""
        elif node.op == "call_module":
            module = model.get_submodule(node.target)
            values[node] = named(node.target)
            inputs = tuple(values[given] for given in node.args)
            steps.append(Step(_kind(module), node.target, inputs, (values[node],), _settings(module)))
        elif node.target is operator.getitem:
            source, key = node.args
            values[node] = f"{STATE}{key}" if source.op == "placeholder" else f"{values[source]}:{key}"
        elif node.op == "call_function" and (kind := _function(node.target)):
            scope = next(reversed(node.meta.get("nn_module_stack", {"": None})), "")
            values[node] = named(f"{scope}/{kind}".lstrip("/"))
            steps.append(_step(node, kind, scope, values))
        elif node.op == "output":
            (result,) = node.args
    return tuple(steps), values, result


def _kind(module: nn.Module) -> str:
    return next(kind for known, kind in _MODULES if isinstance(module, known))


def _settings(module: nn.Module) -> tuple[object, ...]:
    if isinstance(module, RMSNorm | nn.LayerNorm):
        return (module.eps,)
    return (module.by_tanh,) if isinstance(module, GELU) else ()


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
