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

from lfm2_export.quantize.streams import Moments

_DAMPING = 0.01  # of the Hessian's mean diagonal: keeps it invertible where inputs are few or always zero
_RIDGE = 0.03  # likewise, for the least squares: directions that few tokens show keep the matrix as it is
_BLOCK = 128  # columns between two corrections of all later ones


def gptq(weight: Tensor, hessian: Tensor, scales: Tensor, limit: int, lowest: int | None = None) -> Tensor:
    """Integers `[rows, columns] int16` for `weight [rows, columns]`, from `lowest` (else -limit) to `limit`.

    Deterministic. `hessian [columns, columns]` is Σ x xᵀ over the inputs x that the matrix is to be multiplied with;
    `scales` `[rows, groups]`, positive, each for columns / groups neighbours. With a diagonal Hessian this is rounding
    to nearest.
    """
    columns, lowest = weight.shape[1], -limit if lowest is None else lowest
    order = hessian.diagonal().argsort(descending=True, stable=True)
    left = weight.double()[:, order]
    grid = scales.double().repeat_interleave(columns // scales.shape[1], dim=1)[:, order]
    spread = _inverse_factor(hessian[order][:, order])
    values = torch.empty_like(left)
    for start in range(0, columns, _BLOCK):
        end = min(start + _BLOCK, columns)
        errors = torch.empty(weight.shape[0], end - start, dtype=torch.float64)
        for at in range(start, end):
            values[:, at] = (left[:, at] / grid[:, at]).round().clamp(lowest, limit)
            error = (left[:, at] - values[:, at] * grid[:, at]) / spread[at, at]
            left[:, at:end] -= error.unsqueeze(1) * spread[at, at:end]
            errors[:, at - start] = error
        left[:, end:] -= errors @ spread[start:end, end:]
    return values[:, order.argsort()].to(torch.int16)


def undrifted(weight: Tensor, moments: Moments) -> Tensor:
    """The matrix whose products with the drifted inputs come closest to those of `weight` with the exact ones.

    Both are `[rows, columns] fp32`. It is W (C + λ) (H + λ)⁻¹ for cross moment C and Hessian H: `weight` itself where
    nothing has drifted.
    """
    ridge = _damping(moments.hessian, _RIDGE)
    wanted = weight.double() @ moments.cross.double() + ridge * weight.double()
    factor = torch.linalg.cholesky(_with_diagonal(moments.hessian, ridge))
    return torch.cholesky_solve(wanted.T, factor).T.float()


def _inverse_factor(hessian: Tensor) -> Tensor:
    """Upper triangular U with UᵀU = H⁻¹, of the damped Hessian; that of the identity where all inputs are zero."""
    damped = _with_diagonal(hessian, _damping(hessian, _DAMPING))
    return torch.linalg.cholesky(torch.cholesky_inverse(torch.linalg.cholesky(damped)), upper=True)


def _damping(hessian: Tensor, share: float) -> float:
    mean = float(hessian.diagonal().mean())
    return share * mean if mean > 0 else 1.0


def _with_diagonal(hessian: Tensor, extra: float) -> Tensor:
    damped = hessian.double().clone()
    damped.diagonal().add_(extra)
    return damped
