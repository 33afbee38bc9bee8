"""The chips that ExecuTorch can compile for, and what each one's NPU (an HTP of some generation) can do."""

from __future__ import annotations

from typing import Any, NamedTuple

from lfm2_export.errors import RecipeError

DEFAULT = "SM8650"
_SHARING_SINCE = 73  # HTP generation from which two graphs may share one copy of the weights


class Soc(NamedTuple):
    """A chip: its name, HTP generation (68 to 81), and ExecuTorch's number for it."""

    name: str
    generation: int
    chipset: Any

    @property
    def shares_weights(self) -> bool:
        return self.generation >= _SHARING_SINCE


def named(name: object) -> Soc:
    """The chip of that name. RecipeError, with the list, for one that ExecuTorch does not know."""
    known = {soc.name: soc for soc in every()}
    if not isinstance(name, str) or name not in known:
        raise RecipeError(f"unknown SoC {name!r}; known: {', '.join(known)}")
    return known[name]


def every() -> list[Soc]:
    """Every chip of this ExecuTorch, by name."""
    from executorch.backends.qualcomm.serialization.qc_schema import _soc_info_table

    return sorted(Soc(chip.name, int(info.htp_info.htp_arch), chip) for chip, info in _soc_info_table.items())
