"""What calibration says of a matrix's inputs: their second moments, and those factored for GPTQ.

Matrices with one common input share one `Moments`, so each factor is computed once for all of them. Factors are fp64:
a trained model's inputs lie near few directions, and fp32 loses the others.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor

_DAMPING = 0.01  # of the Hessian's mean diagonal: keeps it invertible where inputs are few or always zero
_RIDGE = 0.03  # likewise, for the least squares: directions that few tokens show keep the matrix as it is


class Spread(NamedTuple):
    """The way in which the error of rounding one column is spread over the columns after it."""

    order: Tensor  # [columns] int64: those with the largest inputs first, while many are left to make up for them
    factor: Tensor  # [columns, columns] fp64, in that order: upper triangular U with UᵀU the damped Hessian's inverse


class Moments:
    """Second moments of a matrix's inputs over the calibration tokens, `[columns, columns] fp32` each.

    `hessian` is Σ x xᵀ, x as the quantized layers before it give them; `cross` Σ y xᵀ, y at the same place in the
    exact model.
    """

    def __init__(self, hessian: Tensor, cross: Tensor) -> None:
        self.hessian, self.cross = hessian, cross

    @cached_property
    def spread(self) -> Spread:
        """The moments factored for GPTQ."""
        return spread_of(self.hessian)

    @cached_property
    def ridge(self) -> Tensor:
        """Lower triangular L with LLᵀ = H + λ, for the least squares."""
        return torch.linalg.cholesky(_damped(self.hessian, _RIDGE))


def spread_of(hessian: Tensor) -> Spread:
    """Return the spread of a Hessian `[columns, columns]`; where all inputs are zero, of the identity."""
    order = hessian.diagonal().argsort(descending=True, stable=True)
    backwards = order.flip(0)
    damped = _damped(hessian, _DAMPING)[backwards][:, backwards]
    # LLᵀ = the Hessian read backwards, so L⁻¹ read backwards is upper triangular, and the factor sought
    lower = torch.linalg.cholesky(damped)
    del damped
    inverse = torch.eye(len(lower), dtype=lower.dtype)
    torch.linalg.solve_triangular(lower, inverse, upper=False, out=inverse)
    return Spread(order, inverse.flip(0, 1))


def moments(quantized: Iterator[Tensor], exact: Iterator[Tensor]) -> Moments:
    """Return the moments of the same tokens in both models, `[tokens, columns]` for one batch after another."""
    hessian, cross = torch.zeros(()), torch.zeros(())
    for x, y in zip(quantized, exact, strict=True):
        hessian, cross = _added(hessian, x, x), _added(cross, y, x)
    return Moments(hessian, cross)


def second_moment(inputs: Iterator[Tensor]) -> Tensor:
    """Σ x xᵀ, `[columns, columns] fp32`."""
    total = torch.zeros(())
    for x in inputs:
        total = _added(total, x, x)
    return total


def _added(total: Tensor, left: Tensor, right: Tensor) -> Tensor:
    """`total` + leftᵀ right, in place once there is a total."""
    return total.addmm_(left.T, right) if total.ndim else left.T @ right


def _damped(hessian: Tensor, share: float) -> Tensor:
    mean = float(hessian.diagonal().mean())
    damped = hessian.to(torch.float64, copy=True)
    damped.diagonal().add_(share * mean if mean > 0 else 1.0)
    return damped
