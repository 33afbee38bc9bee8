"""The grid of numbers that a target can store for a matrix, and the choice of its scales.

A weight becomes an integer times the scale of its group. Scales are chosen first, rounded to what the target's format
keeps of them, and only then are weights rounded onto the grid: rounding the scales last would leave weights off their
best integer.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from lfm2_export.model.state import FLOAT_DTYPES
from lfm2_export.quantize.scheme import WeightScheme

STEPS, _TIGHTEST = 40, 0.4  # ranges tried between this share of the largest weight and all of it
_ELEMENTS = 1 << 17  # of a matrix at a time: they stay in the processor's cache, and in memory that is used again
_SMALLEST = 2.0**-23  # scale of a group of zeros: fp16 can still store it


class Grid(NamedTuple):
    """Integers from `lowest` to `highest`, one scale per `group` inputs (None: per row), scales as `storable` leaves
    them: `[rows, groups] fp32` → the same, rounded to what the format keeps.
    """

    group: int | None
    lowest: int
    highest: int
    storable: Callable[[Tensor], Tensor]
    smallest: float = _SMALLEST


def grid_of(scheme: WeightScheme) -> Grid:
    """The grid of XNNPACK and onnxruntime: all 2^bits integers, scales in the scheme's own precision."""
    limit = 2 ** (scheme.bits - 1)
    dtype = FLOAT_DTYPES[scheme.scale]
    return Grid(scheme.group, -limit, limit - 1, lambda scales: scales.to(dtype).float())


def searched_scales(weight: Tensor, grid: Grid, steps: int = STEPS, importance: Tensor | None = None) -> Tensor:
    """Scales `[rows, groups]` for `weight [rows, columns]`: the best of `steps` tighter ranges and the full one.

    The best has the least squared error of rounding to nearest; `importance [columns]` weighs those squares.
    """
    cost = torch.ones(weight.shape[1]) if importance is None else importance.float()
    return torch.cat([_searched(part, grid, steps, cost) for part in weight.split(rows_at_once(weight))])


def rows_at_once(weight: Tensor) -> int:
    """Return how many rows of a matrix are worked on at a time."""
    return max(1, _ELEMENTS // weight.shape[1])


def _searched(weight: Tensor, grid: Grid, steps: int, cost: Tensor) -> Tensor:
    groups = weight.unflatten(1, (-1, grid.group or weight.shape[1]))
    full = torch.maximum(groups.amax(-1) / grid.highest, groups.amin(-1) / grid.lowest).clamp_min(grid.smallest)
    if steps == 0:
        return grid.storable(full)
    cost = cost.view(groups.shape[1:])
    best, least = full, torch.full_like(full, torch.inf)
    for step in range(steps + 1):
        scales = grid.storable((full * (1 - (1 - _TIGHTEST) * step / steps)).clamp_min(grid.smallest))
        rounded = (groups / scales.unsqueeze(-1)).round_().clamp_(grid.lowest, grid.highest).mul_(scales.unsqueeze(-1))
        error = rounded.sub_(groups).square_().mul_(cost).sum(-1)
        best, least = torch.where(error < least, scales, best), torch.minimum(error, least)
    return grid.storable(best)


def nearest(weight: Tensor, scales: Tensor, grid: Grid) -> Tensor:
    """`weight [rows, columns]` on the grid point next to each entry, in fp32."""
    groups = weight.unflatten(1, (scales.shape[1], -1)) / scales.unsqueeze(-1)
    return (groups.round().clamp(grid.lowest, grid.highest) * scales.unsqueeze(-1)).flatten(1)
