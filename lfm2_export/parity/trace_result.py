"""The result of a trace: every point of the network, its error, and the first one that is off."""

from __future__ import annotations

from pydantic import BaseModel


class TracePoint(BaseModel):
    """One named value. Errors are max|Δ| / max|expected|."""

    point: str  # as `point_name` spells it, or a state tensor's name
    layer: int | None
    operation: str  # that made it
    own: float | None  # given the artifact's own inputs: this operation's fault alone; None: they are not known
    typical: float | None = None  # its own again, of the median token: a rounding that falls the other way is not in it
    accumulated: float  # against eager's undisturbed run: with all that came before


class Trace(BaseModel):
    """The place where an artifact first leaves eager PyTorch."""

    runtime: str
    method: str  # what was compared, in a sentence
    tolerance: float
    points: list[TracePoint]
    first: int | None  # the first point beyond the tolerance: by its own error where that is known
    verdict: str  # in a sentence
