"""How far rounding alone moves a model: eager against itself, its embeddings disturbed by about one fp32 rounding.

Two kernels that sum in another order differ by that much. In fp32 it stays that small; where activations are rounded
to int8 it tips roundings over, each tipped one tips others, and in a deep model it can end as a tenth of the largest
logit. A graph in fp16 rounds every value, residual sums too, which eager does not: there its disturbed self does so as
well. No lowering agrees better with eager than eager does with itself, so where this exceeds a recipe's limit, this is
the yardstick.
"""

from __future__ import annotations

from collections.abc import Sequence

from lfm2_export.parity.cases import Case
from lfm2_export.parity.lowering import CaseDistance, Distance, case_distance, over_all
from lfm2_export.parity.truth import EagerTruth


def noise_floor(eager: EagerTruth, cases: Sequence[Case], known: dict[Case, CaseDistance] | None = None) -> Distance:
    """Return how far eager is from its disturbed self over these cases. Deterministic.

    `known` holds what was measured of it before, and gains what is measured now.
    """
    found = {} if known is None else known
    new = [case for case in cases if case not in found]
    for case, disturbed in zip(new, eager.disturbed(new), strict=True):
        found[case] = case_distance(case, disturbed, eager.answer(case))
    return over_all([found[case] for case in cases])
