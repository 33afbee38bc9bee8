"""The weights of a model with static activations: their scales, and what GPTQ makes of the weights themselves.

Such a model is quantized by its target, which rounds each weight to the nearest point of its grid. Here the grid is
chosen; with `gptq` the weights are also moved, onto points of that grid, so that the target's rounding keeps them.
Nothing else is changed, and the given decoder not at all.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable
from typing import Literal, NamedTuple, cast

import torch
from torch import Tensor, nn

from lfm2_export.model.attention import Positions
from lfm2_export.model.decoder import Decoder
from lfm2_export.model.state import State, empty_state
from lfm2_export.quantize.calibration import Windows
from lfm2_export.quantize.gptq import gptq
from lfm2_export.quantize.scheme import Rules, WeightScheme, quantizable, rule_for

Method = Literal["nearest", "mse", "gptq"]

# Within a layer, what is quantized together: each set sees inputs that the sets before it have already changed.
_STAGES = (("b_proj", "c_proj", "x_proj", "q_proj", "k_proj", "v_proj"), ("out_proj",), ("w1", "w3"), ("w2",))
_SMALLEST = 1e-8  # scale of a row of zeros; ExecuTorch takes none below 1.5e-9
_STEPS, _TIGHTEST = 40, 0.4  # ranges tried between this share of the largest weight and all of it
_SHARES = 16  # LPBQ: a group's scale is 1 to 16 sixteenths of its row's largest


class StaticWeights(NamedTuple):
    """A decoder whose weights are to be rounded to nearest, and by path the scales `[rows, groups]` of that grid."""

    decoder: Decoder
    scales: dict[str, Tensor]


@torch.no_grad()
def static_weights(decoder: Decoder, rules: Rules, windows: Windows, method: Method) -> StaticWeights:
    """Choose scales for every matrix but the embedding, whose rows are activations. Deterministic.

    `nearest`: the largest weight sets the scale. `mse`: the scale whose rounding has the least squared error. `gptq`:
    the scale by error weighted with the inputs on `windows`, then GPTQ, layer by layer, each on the inputs that the
    quantized layers before it give.
    """
    own = copy.deepcopy(decoder, {id(tensor): tensor for tensor in decoder.parameters()})  # the tensors are shared
    schemes = {path: scheme for path, kind, _ in quantizable(own.config) if (scheme := _scheme(path, kind, rules))}
    if method == "gptq":
        return StaticWeights(own, _by_gptq(own, schemes, windows))
    steps = _STEPS if method == "mse" else 0
    return StaticWeights(
        own, {path: chosen_scales(_matrix(own, path).weight, scheme, steps) for path, scheme in schemes.items()}
    )


def _scheme(path: str, kind: str, rules: Rules) -> WeightScheme | None:
    rule = rule_for(path, kind, rules)
    return None if rule is None or kind == "embedding" else rule.weight


def chosen_scales(weight: Tensor, scheme: WeightScheme, steps: int, importance: Tensor | None = None) -> Tensor:
    """Symmetric scales `[rows, groups]` for `weight [rows, columns]`: the best of `steps` tighter ranges and the full.

    `importance [columns]` weighs the squared errors. Groups get scales that HTP can store (LPBQ): whole sixteenths of
    the largest of their row.
    """
    limit = largest_integer(scheme)
    groups = weight.unflatten(1, (-1, scheme.group or weight.shape[1]))
    full = (groups.abs().amax(-1) / limit).clamp_min(_SMALLEST)
    cost = torch.ones(weight.shape[1]) if importance is None else importance.float()
    best, least = full, torch.full_like(full, torch.inf)
    for step in range(steps + 1):
        scales = _storable(full * (1 - (1 - _TIGHTEST) * step / max(steps, 1)))
        rounded = (groups / scales.unsqueeze(-1)).round().clamp(-limit, limit) * scales.unsqueeze(-1)
        error = ((rounded - groups).square() * cost.view(groups.shape[1:])).sum(-1)
        best, least = torch.where(error < least, scales, best), torch.minimum(error, least)
    return _storable(best)


def largest_integer(scheme: WeightScheme) -> int:
    """7, 127 or 32767: HTP's weights are symmetric, their most negative integer is not used."""
    return int(2 ** (scheme.bits - 1)) - 1


def _storable(scales: Tensor) -> Tensor:
    unit = scales.amax(1, keepdim=True) / _SHARES
    return (scales / unit).round().clamp(1, _SHARES) * unit if scales.shape[1] > 1 else scales


def _by_gptq(decoder: Decoder, schemes: dict[str, WeightScheme], windows: Windows) -> dict[str, Tensor]:
    scales: dict[str, Tensor] = {}
    runs = [_Run(decoder, tokens) for tokens in windows]
    for layer in range(len(decoder.layers)):
        for stage in _STAGES:
            paths = [path for path in schemes if path.startswith(f"layers.{layer}.") and path.endswith(stage)]
            hessians = _hessians(decoder, paths, runs, layer)
            for path in paths:
                scales[path] = _move_onto_grid(_matrix(decoder, path), schemes[path], hessians[path])
        for run in runs:
            run.x = run.through(decoder, layer)
    if "lm_head" in schemes:
        inputs = (decoder.embedding_norm(run.x) for run in runs)
        scales["lm_head"] = _move_onto_grid(decoder.lm_head, schemes["lm_head"], _second_moment(inputs))
    return scales


class _Run:
    """One window on its way through the layers: whole, from an empty state."""

    def __init__(self, decoder: Decoder, tokens: tuple[int, ...]) -> None:
        ids = torch.tensor([tokens])
        self.state: State = empty_state(decoder.config, 1)
        self.at: Positions = decoder.positions(ids, torch.zeros(1, dtype=torch.long), self.state)
        self.x: Tensor = decoder.embed_tokens(ids)

    def through(self, decoder: Decoder, layer: int) -> Tensor:
        return decoder.advance(layer, self.x, None, self.state, self.at, {})


def _hessians(decoder: Decoder, paths: list[str], runs: list[_Run], layer: int) -> dict[str, Tensor]:
    """By path, Σ x xᵀ over the inputs x of that matrix; matrices with one input share it."""
    seen: dict[str, list[Tensor]] = {path: [] for path in paths}
    hooks = [_matrix(decoder, path).register_forward_pre_hook(_keep_input(seen[path])) for path in paths]
    for run in runs:
        run.through(decoder, layer)
    for hook in hooks:
        hook.remove()
    shared: dict[int, Tensor] = {}
    for inputs in seen.values():
        if id(inputs[0]) not in shared:
            shared[id(inputs[0])] = _second_moment(inputs)
    return {path: shared[id(inputs[0])] for path, inputs in seen.items()}


def _keep_input(into: list[Tensor]) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
    def hook(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        into.append(inputs[0])

    return hook


def _second_moment(inputs: Iterable[Tensor]) -> Tensor:
    rows = (x.flatten(0, -2).double() for x in inputs)
    return cast(Tensor, sum(x.T @ x for x in rows))


def _move_onto_grid(module: nn.Linear, scheme: WeightScheme, hessian: Tensor) -> Tensor:
    weight = module.weight.detach()
    scales = chosen_scales(weight, scheme, _STEPS, hessian.diagonal())
    values = gptq(weight, hessian, scales, largest_integer(scheme))
    moved = (values.unflatten(1, (scales.shape[1], -1)) * scales.unsqueeze(-1)).flatten(1)
    module.weight = nn.Parameter(moved, requires_grad=False)
    return scales


def _matrix(decoder: Decoder, path: str) -> nn.Linear:
    return cast(nn.Linear, decoder.get_submodule(path))
