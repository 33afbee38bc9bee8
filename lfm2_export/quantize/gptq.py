"""GPTQ: round a matrix so that its products change least, not its entries.

Columns are rounded one after the other, and what rounding one of them did to the products is made up for by the
columns not yet rounded (Frantar et al. 2022, arXiv:2210.17323). The scales are given, so the order is free: columns
whose inputs are largest go first, while there are still many left to make up for them.

Layers before have been rounded too, so the inputs have drifted from those of the exact model. `undrifted` first finds
the matrix that on the drifted inputs comes closest to the exact products (least squares; the idea of GPTAQ, Li et al.
2025, arXiv:2504.02692), and that is what is rounded.
"""

from __future__ import annotations

import torch
from torch import Tensor

from lfm2_export.quantize.moments import Moments, Spread, spread_of

_BLOCK = 128  # columns between two corrections of all later ones
_ROWS = 1024  # at a time: rows do not depend on each other, and so few of them stay in the processor's cache


def gptq(
    weight: Tensor,
    hessian: Tensor,
    scales: Tensor,
    limit: int,
    lowest: int | None = None,
    spread: Spread | None = None,
) -> Tensor:
    """Integers `[rows, columns] int16` for `weight [rows, columns]`, from `lowest` (else -limit) to `limit`.

    Deterministic. `hessian [columns, columns]` is Σ x xᵀ over the inputs x that the matrix is to be multiplied with;
    `spread` is what `spread_of` makes of it, where it is known already; `scales` `[rows, groups]`, positive, each for
    columns / groups neighbours. With a diagonal Hessian this is rounding to nearest.
    """
    spread = spread_of(hessian) if spread is None else spread
    values = torch.empty(weight.shape, dtype=torch.int16)
    for start in range(0, len(weight), _ROWS):
        rows = slice(start, start + _ROWS)
        values[rows] = _rounded(weight[rows], scales[rows], spread, -limit if lowest is None else lowest, limit)
    return values


def _rounded(weight: Tensor, scales: Tensor, spread: Spread, lowest: int, highest: int) -> Tensor:
    """Those rows' integers, `[rows, columns] int16`. Columns lie one after the other in memory here: one at a time."""
    order, factor = spread
    columns = weight.shape[1]
    left = weight.double().T[order]  # [columns, rows]
    grid = scales.double().T[order // (columns // scales.shape[1])]
    values = torch.empty_like(left)
    for start in range(0, columns, _BLOCK):
        end = min(start + _BLOCK, columns)
        errors = torch.empty(end - start, weight.shape[0], dtype=torch.float64)
        for at in range(start, end):
            values[at] = (left[at] / grid[at]).round_().clamp_(lowest, highest)
            errors[at - start] = (left[at] - values[at] * grid[at]) / factor[at, at]
            left[at:end].addr_(factor[at, at:end], errors[at - start], alpha=-1)
        left[end:].addmm_(factor[start:end, end:].T, errors, alpha=-1)
    return values[order.argsort()].T.to(torch.int16)


def undrifted(weight: Tensor, moments: Moments) -> Tensor:
    """The matrix whose products with the drifted inputs come closest to those of `weight` with the exact ones.

    Both are `[rows, columns] fp32`. It is W + W (C - H) (H + λ)⁻¹ for cross moment C and Hessian H: `weight` itself
    where nothing has drifted.
    """
    drift = moments.cross - moments.hessian
    return torch.cat([part + _mended(part, drift, moments.ridge) for part in weight.split(_ROWS)])


def _mended(weight: Tensor, drift: Tensor, ridge: Tensor) -> Tensor:
    return torch.cholesky_solve((weight @ drift).double().T, ridge).T.float()
