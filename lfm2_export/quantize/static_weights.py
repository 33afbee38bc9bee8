"""The weights of a model with static activations: their scales, and what GPTQ makes of the weights themselves.

Such a model is quantized by its target, which rounds each weight to the nearest point of its grid. Here the grid is
chosen; with `gptq` the weights are also moved, onto points of that grid, so that the target's rounding keeps them.
Nothing else is changed, and the given decoder not at all.
"""

from __future__ import annotations

import copy
from typing import NamedTuple, cast

import torch
from torch import Tensor, nn

from lfm2_export.graph.matrices import matrices, siblings
from lfm2_export.model.decoder import Decoder
from lfm2_export.model.sequences import TokenSequences
from lfm2_export.quantize.gptq import gptq, undrifted
from lfm2_export.quantize.grid import STEPS, Grid, searched_scales
from lfm2_export.quantize.method import Method
from lfm2_export.quantize.moments import Moments, moments
from lfm2_export.quantize.scheme import Rules, WeightScheme, rule_for
from lfm2_export.quantize.streams import Stream

METHODS: tuple[Method, ...] = ("nearest", "mse", "gptq")
_SHARES = 16  # LPBQ: a group's scale is 1 to 16 sixteenths of its row's largest


class StaticWeights(NamedTuple):
    """A decoder whose weights are to be rounded to nearest, and by path the scales `[rows, groups]` of that grid."""

    decoder: Decoder
    scales: dict[str, Tensor]


@torch.no_grad()
def static_weights(decoder: Decoder, rules: Rules, sequences: TokenSequences, method: Method) -> StaticWeights:
    """Choose scales for every matrix but the embedding, whose rows are activations. Deterministic.

    `nearest`: the largest weight sets the scale. `mse`: the scale whose rounding has the least squared error. `gptq`:
    the scale by error weighted with the inputs on `sequences`, then GPTQ, layer by layer, each on the inputs that the
    quantized layers before it give.
    """
    own = copy.deepcopy(decoder, {id(tensor): tensor for tensor in decoder.parameters()})  # the tensors are shared
    schemes = {path: scheme for path, kind, _ in matrices(own.config) if (scheme := _scheme(path, kind, rules))}
    if method == "gptq":
        return StaticWeights(own, _by_gptq(decoder, own, schemes, sequences))
    steps = STEPS if method == "mse" else 0
    return StaticWeights(
        own, {path: chosen_scales(_matrix(own, path).weight, scheme, steps) for path, scheme in schemes.items()}
    )


def _scheme(path: str, kind: str, rules: Rules) -> WeightScheme | None:
    rule = rule_for(path, kind, rules)
    return None if rule is None or kind == "embedding" else rule.weight


def chosen_scales(weight: Tensor, scheme: WeightScheme, steps: int, importance: Tensor | None = None) -> Tensor:
    """Scales `[rows, groups]` of HTP's grid for `weight [rows, columns]`, see `searched_scales`."""
    return searched_scales(weight, htp_grid(scheme), steps, importance)


def htp_grid(scheme: WeightScheme) -> Grid:
    """Symmetric, without the most negative integer; a group's scale is in whole sixteenths of its row's largest."""
    limit = int(2 ** (scheme.bits - 1)) - 1
    return Grid(scheme.group, -limit, limit, _storable)


def _storable(scales: Tensor) -> Tensor:
    unit = scales.amax(1, keepdim=True) / _SHARES
    return (scales / unit).round().clamp(1, _SHARES) * unit if scales.shape[1] > 1 else scales


def _by_gptq(
    exact: Decoder, decoder: Decoder, schemes: dict[str, WeightScheme], sequences: TokenSequences
) -> dict[str, Tensor]:
    scales: dict[str, Tensor] = {}
    ours, theirs = Stream(decoder, sequences), Stream(exact, sequences)
    for layer in range(decoder.config.num_hidden_layers):
        for group in siblings(decoder.config, layer):
            paths = [path for path in group.paths if path in schemes]
            if paths:
                seen = moments(ours.inputs(decoder, layer, paths[0]), theirs.inputs(exact, layer, paths[0]))
            for path in paths:
                scales[path] = _move_onto_grid(_matrix(decoder, path), schemes[path], seen)
        ours.advance(decoder, layer)
        theirs.advance(exact, layer)
    if "lm_head" in schemes:
        seen = moments(ours.outputs(decoder.embedding_norm), theirs.outputs(exact.embedding_norm))
        scales["lm_head"] = _move_onto_grid(decoder.lm_head, schemes["lm_head"], seen)
    return scales


def _move_onto_grid(module: nn.Linear, scheme: WeightScheme, seen: Moments) -> Tensor:
    grid, weight = htp_grid(scheme), undrifted(module.weight.detach(), seen)
    scales = searched_scales(weight, grid, importance=seen.hessian.diagonal())
    values = gptq(weight, seen.hessian, scales, grid.highest, spread=seen.spread)
    moved = (values.unflatten(1, (scales.shape[1], -1)) * scales.unsqueeze(-1)).flatten(1)
    module.weight = nn.Parameter(moved, requires_grad=False)
    return scales


def _matrix(decoder: Decoder, path: str) -> nn.Linear:
    return cast(nn.Linear, decoder.get_submodule(path))
