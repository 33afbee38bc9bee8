"""Smoothing: make the inputs that matter coarser, and so the weights they meet finer, at no cost in the exact model.

A product's input j is divided by s_j, in whatever made it (a norm's weight, the taps of a convolution, the rows of a
matrix), and the weights of column j are multiplied by it: exact but for fp32's rounding. Rounding then errs less on the
columns with the largest inputs (activation-aware quantization, Lin et al. 2023, arXiv:2306.00978). The strength is
searched for by the error of the products themselves.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import cast

from torch import Tensor, nn

from lfm2_export.model.attention import Attention
from lfm2_export.model.decoder import Block
from lfm2_export.model.layers import RMSNorm
from lfm2_export.model.short_conv import ShortConv
from lfm2_export.quantize.grid import Grid, nearest, searched_scales

_STRENGTHS = tuple(step / 8 for step in range(1, 9))
_REACH = 2.0**6  # most that a column is scaled by, either way: what follows is stored in bf16 or fp16 at worst

Grids = Mapping[str, Grid]  # by path within the layer, of every matrix that becomes integers
Moment = Callable[[str], Tensor]  # path within the layer → Σ x xᵀ of that matrix's inputs, as the layer is now


def smooth(block: Block, grids: Grids, moment: Moment) -> None:
    """Fold the best scaling into each place of a layer that allows one, in place. Deterministic."""
    if hasattr(block, "conv"):
        _smooth_conv(block, block.conv, grids, moment)
    else:
        _smooth_attention(block, block.self_attn, grids, moment)
    mlp = block.feed_forward
    _after_norm(block, block.ffn_norm, ("feed_forward.w1", "feed_forward.w3"), grids, moment)
    scaling = _best(block, ("feed_forward.w2",), grids, moment)
    if scaling is not None:
        _scale_columns(mlp.w2, scaling)
        _scale_rows(mlp.w3, 1 / scaling)


def _smooth_conv(block: Block, conv: ShortConv, grids: Grids, moment: Moment) -> None:
    _after_norm(block, block.operator_norm, ("conv.b_proj", "conv.c_proj", "conv.x_proj"), grids, moment)
    scaling = _best(block, ("conv.out_proj",), grids, moment)
    if scaling is not None:
        _scale_columns(conv.out_proj, scaling)
        _set(conv, "kernel", conv.kernel / scaling)  # the taps stay in float: nothing else has to give
        if conv.bias is not None:
            _set(conv, "bias", conv.bias / scaling)


def _smooth_attention(block: Block, attention: Attention, grids: Grids, moment: Moment) -> None:
    paths = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")
    _after_norm(block, block.operator_norm, paths, grids, moment)
    width = attention.head_dim
    kv_heads = attention.v_proj.weight.shape[0] // width

    def alike(per_column: Tensor) -> Tensor:
        """The query heads that share a value head share its scaling."""
        heads = per_column.view(kv_heads, -1, width)
        return heads.log().mean(1, keepdim=True).exp().expand_as(heads).flatten()

    scaling = _best(block, ("self_attn.out_proj",), grids, moment, alike)
    if scaling is not None:
        _scale_columns(attention.out_proj, scaling)
        _scale_rows(attention.v_proj, 1 / scaling.view(kv_heads, -1, width)[:, 0].flatten())


def _after_norm(block: Block, norm: RMSNorm, paths: tuple[str, ...], grids: Grids, moment: Moment) -> None:
    scaling = _best(block, paths, grids, moment)
    if scaling is not None:
        _set(norm, "weight", norm.weight / scaling)
        for path in paths:
            _scale_columns(_linear(block, path), scaling)


def _best(
    block: Block,
    paths: tuple[str, ...],
    grids: Grids,
    moment: Moment,
    alike: Callable[[Tensor], Tensor] = lambda per_column: per_column,
) -> Tensor | None:
    """The scaling `[columns]` of matrices with one common input whose products err least; None to leave them alone."""
    matrices = [(_linear(block, path).weight, grids[path]) for path in paths if path in grids]
    if not matrices:
        return None
    hessian = moment(paths[0])
    size = hessian.diagonal().clamp_min(1e-12).sqrt()
    best, least = None, sum(_error(weight, grid, hessian, None) for weight, grid in matrices)
    for strength in _STRENGTHS:
        scaling = alike(size**strength)
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


def _scale_rows(module: nn.Linear, scaling: Tensor) -> None:
    _set(module, "weight", module.weight * scaling.unsqueeze(1))
    if module.bias is not None:
        _set(module, "bias", module.bias * scaling)


def _set(module: nn.Module, name: str, value: Tensor) -> None:
    setattr(module, name, nn.Parameter(value, requires_grad=False))


def _linear(block: Block, path: str) -> nn.Linear:
    return cast(nn.Linear, block.get_submodule(path))
