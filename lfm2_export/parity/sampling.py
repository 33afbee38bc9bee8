"""How much worse than its limit a quality figure may come out by chance alone, where little text was measured.

A full proof is held to the limits themselves. A quick one reads a tenth of the text, on which an artifact that meets a
limit may miss it. So it fails only where an artifact just at the limit would come out that badly less than once in a
hundred times. Tokens count as independent of each other, which those of a text are not quite: that leaves the room
rather too small than too large.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from lfm2_export.evaluate.metrics import QuantizationLoss

_CHANCE = 0.01


class Limit(NamedTuple):
    """The limit to hold a figure to, and why it is not the one that was asked for; no reason where it is."""

    value: float
    reason: str | None = None


def least_share(asked: float, count: int) -> Limit:
    """Return the least share of `count` trials that a true share of `asked` leaves to chance, a binomial bound."""
    from scipy.special import bdtr

    likely = bdtr(np.arange(count + 1), count, max(asked, 0.0)) >= _CHANCE  # so few hits, or fewer
    return Limit(int(likely.argmax()) / count, _reason(asked, f"{count} trials", "binomial"))


def most_mean(asked: float, found: QuantizationLoss) -> Limit:
    """Return the largest mean KLD that a true one of `asked` leaves to chance, Student's bound by its own spread."""
    from scipy.special import stdtrit

    if found.tokens < 2:  # which have no spread
        return Limit(asked)
    more = float(stdtrit(found.tokens - 1, 1 - _CHANCE)) * found.kld_standard_error
    return Limit(asked + more, _reason(asked, f"{found.tokens} tokens", "Student's t"))


def _reason(asked: float, sample: str, by: str) -> str:
    return f"{asked:.3g}, with room for what {sample} leave to chance ({1 - _CHANCE:.0%}, {by})"
