"""Static quantization on ExecuTorch's PT2E flow: one set of scales for both methods, from real conversations.

The two methods are one network traced for two numbers of rows, so their graphs correspond node by node and share their
observers: whatever either sees counts for both, and a key that prefill wrote means the same to decode. Calibration
runs conversations as a runtime does, state carried along. The result is a pair of modules that computes in eager
PyTorch what the NPU shall compute, and from which the NPU's program is compiled.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any, cast

import torch
from executorch.backends.qualcomm.quantizer.quantizer import ModuleQConfig, QnnQuantizer, QuantDtype
from torch import Tensor
from torch.fx import GraphModule, Node
from torchao.quantization.pt2e import MinMaxObserver
from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e

from lfm2_export.checkpoint.config import LFM2Config
from lfm2_export.errors import LoweringError
from lfm2_export.model.sequences import TokenSequences
from lfm2_export.model.state import State
from lfm2_export.qualcomm.soc import Soc
from lfm2_export.quantize.scheme import QuantizationRule, rules_by_path
from lfm2_export.recipes import Recipe
from lfm2_export.static_calls import DECODE, PREFILL, call_inputs, static_state, write_back
from lfm2_export.targets.qnn.ranges import RangeObserver

_ANNOTATION = "quantization_annotation"
_MATRIX: dict[Any, int] = {torch.ops.aten.linear.default: 1, torch.ops.aten.embedding.default: 0}  # its argument
_WIDTHS = {4: QuantDtype.use_16a4w, 8: QuantDtype.use_16a8w, 16: QuantDtype.use_16a16w}


def quantized(
    programs: Mapping[str, GraphModule],
    scales: Mapping[str, Tensor],
    config: LFM2Config,
    recipe: Recipe,
    soc: Soc,
    sequences: TokenSequences,
    chunk: int,
) -> dict[str, GraphModule]:
    """Return the methods' programs with every scale chosen, still in PyTorch; `scales` are the weights', by path."""
    prepared = {
        name: prepare_pt2e(program, _quantizer(program, config, recipe, soc)) for name, program in programs.items()
    }
    _share_observers(prepared[DECODE], prepared[PREFILL])
    for tokens in sequences:
        _converse(prepared, config, recipe.window, chunk, tokens)
    for module in prepared.values():
        _set_weight_scales(module, scales)
    for observer in set(prepared[PREFILL].modules()) | set(prepared[DECODE].modules()):
        if isinstance(observer, RangeObserver):
            observer.settle(_percentile(recipe))
    for module in prepared.values():
        _join_concatenated(module)
    return {name: convert_pt2e(module) for name, module in prepared.items()}


def _quantizer(program: GraphModule, config: LFM2Config, recipe: Recipe, soc: Soc) -> QnnQuantizer:
    assert recipe.calibration is not None  # the recipe's check
    rules = rules_by_path(config, recipe.quantization)
    observer = MinMaxObserver if recipe.calibration.observer == "min-max" else RangeObserver
    configs = {rule: _module_config(rule, observer) for rule in rules.values() if rule is not None}
    groups = {path: rule.weight.group for path, rule in rules.items() if rule is not None and rule.weight is not None}
    mkldnn = torch.backends.mkldnn.enabled
    quantizer = QnnQuantizer(soc_model=soc.chipset)
    # on AMD its constructor turns that off for the whole process, against a crash in convolutions: there is none here
    torch.backends.mkldnn.enabled = mkldnn
    quantizer.set_default_quant_config(QuantDtype.use_16a8w, act_observer=observer)
    quantizer.set_block_size_map(
        {node.name: (1, groups[path]) for path, node in _linears(program) if groups[path] is not None}
    )
    quantizer.set_submodule_qconfig_list(
        [(partial(_falls_under, rule, rules), config) for rule, config in configs.items()]
    )
    quantizer.add_custom_quant_annotations([_leave_integers_alone])
    return quantizer


def _percentile(recipe: Recipe) -> float | None:
    assert recipe.calibration is not None
    return recipe.calibration.percentile if recipe.calibration.observer == "percentile" else None


def _module_config(rule: QuantizationRule, observer: Any) -> ModuleQConfig:
    assert rule.weight is not None  # the target's check
    width = QuantDtype.use_16a4w_block if rule.weight.group else _WIDTHS[rule.weight.bits]
    return ModuleQConfig(width, is_linear_per_channel=True, act_observer=observer)


def _falls_under(rule: QuantizationRule, rules: Mapping[str, QuantizationRule | None], node: Node) -> bool:
    path = _matrix(node)
    return path is not None and rules[path] == rule


def _matrix(node: Node) -> str | None:
    """The path of the matrix that a product or a lookup reads, with or without an observer between; None for others."""
    if node.target not in _MATRIX:
        return None
    weight = cast(Node, node.args[_MATRIX[node.target]])
    source = weight if weight.op == "get_attr" else cast(Node, weight.args[0])
    return str(source.target).removesuffix(".weight")


def _linears(module: GraphModule) -> Iterator[tuple[str, Node]]:
    """Every matrix product with a weight, behind the weight's path."""
    for node in module.graph.nodes:
        path = _matrix(node)
        if path is not None and node.target is torch.ops.aten.linear.default:
            yield path, node


def _set_weight_scales(module: GraphModule, scales: Mapping[str, Tensor]) -> None:
    """Let the weights' observers have seen what gives these scales, whatever they saw."""
    for path, node in _linears(module):
        weight = cast(Node, node.args[1])
        observer: Any = module.get_submodule(str(weight.target))
        observer.max_val = scales[path].reshape(observer.min_val.shape) * observer.quant_max
        observer.min_val = -observer.max_val


def _leave_integers_alone(module: GraphModule) -> None:
    """Positions and indices are integers: nothing computed from them alone has a scale."""
    for node in module.graph.nodes:
        value = node.meta.get("val")
        if isinstance(value, torch.Tensor) and not value.is_floating_point():
            node.meta.pop(_ANNOTATION, None)


def _share_observers(decode: GraphModule, prefill: GraphModule) -> None:
    """Make the decode graph observe with the prefill graph's observers, one instance for each pair of nodes."""
    pairs = [[str(node.target) for node in module.graph.nodes] for module in (decode, prefill)]
    if pairs[0] != pairs[1]:
        raise LoweringError("the graphs of decode and prefill differ in more than their rows; their scales would too")
    for name, observer in prefill._modules.items():  # named_children() would leave out second names of an observer
        if name.startswith("activation_post_process"):
            decode._modules[name] = observer


@torch.no_grad()
def _converse(
    methods: Mapping[str, GraphModule], config: LFM2Config, window: int, chunk: int, tokens: tuple[int, ...]
) -> None:
    """Run a conversation through the observers: whole chunks by prefill, the rest token by token, as decode will."""
    state: State = static_state(config, window)
    position = 0
    while position < len(tokens):
        rows = chunk if len(tokens) - position >= chunk else 1
        inputs = call_inputs(tokens[position : position + rows], rows, position, window, state)
        _, *new = methods[PREFILL if rows > 1 else DECODE](*inputs)
        write_back(state, new[: len(state)], position, rows)  # what probes show follows
        position += rows


def _join_concatenated(module: GraphModule) -> None:
    """Give all that is concatenated one range: on HTP it has the result's, whatever its own scale was to be.

    (ExecuTorch's ConcatObserver is meant to, but misses a graph's own inputs: the conv state was clipped in the
    reference and not on the NPU.)
    """
    groups = [_observers(module, node) for node in module.graph.nodes if node.target is torch.ops.aten.cat.default]
    for group in groups:
        if any(isinstance(observer, RangeObserver) for observer in group):
            for observer in group:
                if not isinstance(observer, RangeObserver):  # it knows the extremes only: it takes what is chosen
                    observer.min_val, observer.max_val = torch.tensor(torch.inf), torch.tensor(-torch.inf)
    changed = True
    while changed:  # ranges only ever widen, so this ends
        changed = False
        for group in groups:
            low = torch.stack([observer.min_val for observer in group]).min()
            high = torch.stack([observer.max_val for observer in group]).max()
            for observer in group:
                if observer.min_val > low or observer.max_val < high:
                    observer.min_val, observer.max_val, changed = low.clone(), high.clone(), True


def _observers(module: GraphModule, node: Node) -> list[Any]:
    """Of a concatenation's inputs and of its result."""
    around = [*cast(list[Node], node.args[0]), *node.users]
    return [module.get_submodule(str(each.target)) for each in around if each.op == "call_module"]
