"""Smoothing: make the inputs that matter coarser, and so the weights they meet finer, at no cost in the exact model.

A product's input j is divided by s_j, in whatever made it (a norm's weight, the taps of a convolution, the rows of a
matrix), and the weights of column j are multiplied by it: exact but for fp32's rounding. Rounding then errs less on the
columns with the largest inputs (activation-aware quantization, Lin et al. 2023, arXiv:2306.00978). The strength is
searched for by the error of the products themselves.

Which matrices share an input, and what made it, is read off the trace.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple, cast

from torch import Tensor, nn

from lfm2_export.graph.matrices import Siblings, siblings
from lfm2_export.graph.steps import STATE, Network, Step, layer_of
from lfm2_export.graph.trace import trace
from lfm2_export.model.decoder import Decoder
from lfm2_export.model.state import state_shapes
from lfm2_export.quantize.grid import Grid, nearest, searched_scales

_STRENGTHS = tuple(step / 8 for step in range(1, 9))
_REACH = 2.0**6  # most that a column is scaled by, either way: what follows is stored in bf16 or fp16 at worst
_IN_FLOAT = {"rms_norm": ("weight",), "short_conv": ("kernel", "bias")}  # kind of step → parameters, channels last

Grids = Mapping[str, Grid]  # by path, of every matrix that becomes integers
Moment = Callable[[str], Tensor]  # path → Σ x xᵀ of that matrix's inputs, as the layer is now


class Absorber(NamedTuple):
    """The step whose parameters a value's channels are in proportion to: where a scaling of them can go."""

    step: Step  # rms_norm, short_conv or linear
    attention: Step | None = None  # what mixes its tokens on the way, one value head for several query heads


def smooth(decoder: Decoder, layer: int, grids: Grids, moment: Moment) -> None:
    """Fold the best scaling into each place of a layer that allows one, in place. Deterministic."""
    network = trace(decoder.config, padded=False)
    for group in siblings(decoder.config, layer):
        absorber = absorber_of(network, group, layer)
        if absorber is None:
            continue
        heads = _value_heads(decoder, absorber)
        scaling = _best(decoder, group.paths, grids, moment, heads)
        if scaling is not None:
            for path in group.paths:
                _scale_columns(_linear(decoder, path), scaling)
            _divide(decoder, absorber.step, scaling if heads is None else _by_head(scaling, heads)[:, 0].flatten())


def absorber_of(network: Network, group: Siblings, layer: int) -> Absorber | None:
    """Return what can absorb a scaling of that layer's matrices' input, or None: then nothing may be scaled."""
    if group.value in network.results or {step.path for step in network.users(group.value)} != set(group.paths):
        return None  # somebody else would see it
    found = _absorber(network, group.value)
    return found if found is not None and layer_of(found.step.path) == layer else None


def _absorber(network: Network, value: str) -> Absorber | None:
    made_by = network.maker(value)
    if made_by is None:
        return None
    if made_by.kind in (*_IN_FLOAT, "linear") and value == made_by.output:
        return Absorber(made_by)
    if made_by.kind == "attention" and value == made_by.output:
        found = _alone(network, made_by.inputs[2])
        return found and Absorber(found.step, made_by)
    if made_by.kind == "mul":
        factors = [found for factor in made_by.inputs if (found := _alone(network, factor)) is not None]
        return min(factors, key=lambda each: each.step.kind not in _IN_FLOAT, default=None)  # those stay as precise
    return None


def _alone(network: Network, value: str) -> Absorber | None:
    """The same for a value on the way, which nothing else may read."""
    readings = sum(step.inputs.count(value) for step in network.steps) + network.results.count(value)
    return _absorber(network, value) if readings == 1 else None


def _value_heads(decoder: Decoder, absorber: Absorber) -> tuple[int, int] | None:
    """How many value heads lie between the two, and their width; None without attention."""
    if absorber.attention is None:
        return None
    past_value = absorber.attention.inputs[4].removeprefix(STATE)
    _, heads, _, width = state_shapes(decoder.config, 1)[past_value]
    return heads, width


def _by_head(per_column: Tensor, heads: tuple[int, int]) -> Tensor:
    """`[columns]` → `[value heads, query heads that share one, width]`."""
    return per_column.view(heads[0], -1, heads[1])


def _alike(per_column: Tensor, heads: tuple[int, int] | None) -> Tensor:
    """Query heads that share a value head share its scaling."""
    if heads is None:
        return per_column
    by_head = _by_head(per_column, heads)
    return by_head.log().mean(1, keepdim=True).exp().expand_as(by_head).flatten()


def _best(
    decoder: Decoder, paths: tuple[str, ...], grids: Grids, moment: Moment, heads: tuple[int, int] | None
) -> Tensor | None:
    """The scaling `[columns]` of matrices with one common input whose products err least; None to leave them alone."""
    matrices = [(_linear(decoder, path).weight, grids[path]) for path in paths if path in grids]
    if not matrices:
        return None
    hessian = moment(paths[0])
    size = hessian.diagonal().clamp_min(1e-12).sqrt()
    best, least = None, sum(_error(weight, grid, hessian, None) for weight, grid in matrices)
    for strength in _STRENGTHS:
        scaling = _alike(size**strength, heads)
        scaling = (scaling / (scaling.max() * scaling.min()).sqrt()).clamp(1 / _REACH, _REACH)
        error = sum(_error(weight, grid, hessian, scaling) for weight, grid in matrices)
        if error < least:
            best, least = scaling, error
    return best


def _error(weight: Tensor, grid: Grid, hessian: Tensor, scaling: Tensor | None) -> float:
    """Squared error of the products, summed over the calibration tokens, when rounded to nearest after scaling."""
    scaled = weight if scaling is None else weight * scaling
    rounded = nearest(scaled, searched_scales(scaled, grid, steps=0), grid)
    off = rounded - scaled if scaling is None else (rounded - scaled) / scaling
    return float(((off @ hessian) * off).sum())


def _scale_columns(module: nn.Linear, scaling: Tensor) -> None:
    _set(module, "weight", module.weight * scaling)


def _divide(decoder: Decoder, step: Step, scaling: Tensor) -> None:
    """Divide what a step gives, channel by channel, in its own parameters."""
    module = decoder.get_submodule(step.path)
    for name in _IN_FLOAT.get(step.kind, ()):
        if (parameter := getattr(module, name)) is not None:
            _set(module, name, parameter / scaling)
    if step.kind == "linear":
        linear, factor = _linear(decoder, step.path), 1 / scaling
        _set(linear, "weight", linear.weight * factor.unsqueeze(1))
        if linear.bias is not None:
            _set(linear, "bias", linear.bias * factor)


def _set(module: nn.Module, name: str, value: Tensor) -> None:
    setattr(module, name, nn.Parameter(value, requires_grad=False))


def _linear(decoder: Decoder, path: str) -> nn.Linear:
    return cast(nn.Linear, decoder.get_submodule(path))
