"""Which option for which module: a small integer programme, solved exactly (HiGHS, through scipy).

Costs are taken to add up: modules' errors are small and largely independent, and the sum is compared with the whole.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from lfm2_export.errors import UsageError

Table = Sequence[Sequence[float]]  # [unit][option]


class Allocation(NamedTuple):
    """One option index per unit, and what the choice sums up to."""

    chosen: tuple[int, ...]
    cost: float
    weight: float


def cheapest(cost: Table, weight: Table, budget: float, kept: float = 0.0) -> Allocation:
    """The least cost of all choices whose weight is at most `budget`, of which `kept` is taken whatever is chosen.

    UsageError when there is none. Deterministic.
    """
    from scipy.optimize import Bounds, LinearConstraint, milp

    costs, weights = (np.array([value for row in table for value in row], dtype=float) for table in (cost, weight))
    owner = np.repeat(np.arange(len(cost)), [len(row) for row in cost])
    one_each = (owner == np.arange(len(cost))[:, None]).astype(float)
    scale, unit = max(costs.max(), 1e-30), max(weights.max(), 1e-30)
    found = milp(
        costs / scale,
        integrality=np.ones(len(costs)),
        bounds=Bounds(0, 1),
        constraints=[
            LinearConstraint(one_each, 1, 1),
            LinearConstraint(weights[None] / unit, -np.inf, (budget - kept) / unit),
        ],
        options={"mip_rel_gap": 1e-6},
    )
    if found.x is None:
        raise UsageError(f"no choice fits {budget:.4g}: the least there is, is {kept + sum(map(min, weight)):.4g}")
    picked = np.flatnonzero(found.x > 0.5)
    starts = np.searchsorted(owner, np.arange(len(cost)))
    return Allocation(tuple((picked - starts).tolist()), float(costs[picked].sum()), float(weights[picked].sum()))


def front(cost: Table, weight: Table, points: int = 12) -> list[Allocation]:
    """The best choices for evenly spaced budgets, lightest first; no two of them the same."""
    least, most = (sum(pick(row) for row in weight) for pick in (min, max))
    found = [cheapest(cost, weight, budget) for budget in np.linspace(least, most, points)]
    return [each for number, each in enumerate(found) if each not in found[:number]]
