"""GPTQ: round a matrix so that its products change least, not its entries.

Columns are rounded one after the other, and what rounding one of them did to the products is made up for by the
columns not yet rounded (Frantar et al. 2022, arXiv:2210.17323). The scales are given, so the order is free: columns
whose inputs are largest go first, while there are still many left to make up for them.
"""

from __future__ import annotations

import torch
from torch import Tensor

_DAMPING = 0.01  # of the Hessian's mean diagonal: keeps it invertible where inputs are few or always zero
_BLOCK = 128  # columns between two corrections of all later ones


def gptq(weight: Tensor, hessian: Tensor, scales: Tensor, limit: int) -> Tensor:
    """Integers `[rows, columns] int16` in ±`limit` for `weight [rows, columns]`. Deterministic.

    `hessian [columns, columns]` is Σ x xᵀ over the inputs x that the matrix is to be multiplied with; `scales`
    `[rows, groups]`, positive, each for columns / groups neighbours. With a diagonal Hessian this is rounding to
    nearest.
    """
    columns = weight.shape[1]
    order = hessian.diagonal().argsort(descending=True, stable=True)
    left = weight.double()[:, order]
    grid = scales.double().repeat_interleave(columns // scales.shape[1], dim=1)[:, order]
    spread = _inverse_factor(hessian.double()[order][:, order])
    values = torch.empty_like(left)
    for start in range(0, columns, _BLOCK):
        end = min(start + _BLOCK, columns)
        errors = torch.empty(weight.shape[0], end - start, dtype=torch.float64)
        for at in range(start, end):
            values[:, at] = (left[:, at] / grid[:, at]).round().clamp(-limit, limit)
            error = (left[:, at] - values[:, at] * grid[:, at]) / spread[at, at]
            left[:, at:end] -= error.unsqueeze(1) * spread[at, at:end]
            errors[:, at - start] = error
        left[:, end:] -= errors @ spread[start:end, end:]
    return values[:, order.argsort()].to(torch.int16)


def _inverse_factor(hessian: Tensor) -> Tensor:
    """Upper triangular U with UᵀU = H⁻¹, of the damped Hessian; that of the identity where all inputs are zero."""
    mean = hessian.diagonal().mean()
    damped = hessian + torch.eye(len(hessian), dtype=torch.float64) * (_DAMPING * mean if mean > 0 else 1.0)
    return torch.linalg.cholesky(torch.cholesky_inverse(torch.linalg.cholesky(damped)), upper=True)
