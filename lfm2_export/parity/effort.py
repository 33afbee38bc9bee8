"""How much of an artifact is measured: all of it, or for the daily loop a fraction."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Literal

from lfm2_export.artifact.manifest import Extent
from lfm2_export.errors import UsageError


@dataclass(frozen=True)
class Effort:
    """The extent to which an artifact is measured. `name` is the one that a user chose, "custom" for one's own."""

    quality_tokens: int = 2000
    questions: int = 60  # of nano's held-out ones
    prompts: int = 4
    continuation: int = 16  # greedy tokens after each prompt
    law_tokens: int = 1024  # most that a state law feeds
    case_tokens: int = 48  # of each of question 1's cases
    case_steps: int = 64  # single decode steps of its long one
    whole: bool = True  # whether the window is filled for its law, and the other form made, and activations in float
    drift_steps: int | None = None  # most that a report's long conversation takes; None: as many as are asked for
    name: Extent | Literal["custom"] = "custom"


LEFT_OUT = "left out of a quick proof (--effort full measures it)"
_EFFORTS: dict[Extent, dict[str | None, Effort]] = {
    "full": {
        None: Effort(name="full"),
        "CPU": Effort(600, 24, 2, 8, 24, drift_steps=24, name="full"),
        "NPU": Effort(150, 12, 2, 8, 24, drift_steps=24, name="full"),
    },
    "quick": {
        None: Effort(128, 8, 1, 4, 16, 12, 8, whole=False, drift_steps=200, name="quick"),
        "CPU": Effort(80, 4, 1, 4, 16, 12, 8, whole=False, drift_steps=24, name="quick"),
        "NPU": Effort(30, 2, 1, 4, 16, 12, 4, whole=False, drift_steps=24, name="quick"),
    },
}
EMULATED, EMULATED_CPU = _EFFORTS["full"]["NPU"], _EFFORTS["full"]["CPU"]  # 0.1 to 0.5 s a call; nano 0.01 s


def extent(name: str) -> Extent:
    """Return the effort of that name. UsageError if there is none."""
    for known in _EFFORTS:
        if name == known:
            return known
    raise UsageError(f"--effort {name!r:.40}: expected {' or '.join(_EFFORTS)}")


def effort_of(name: Extent, emulated: Collection[str | None]) -> Effort:
    """Return what that means where these processors, "CPU" or "NPU", are emulated: slow ones are asked less."""
    return _EFFORTS[name][next((each for each in ("NPU", "CPU") if each in emulated), None)]
