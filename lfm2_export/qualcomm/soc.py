"""The one list of chips: those that ExecuTorch can compile for, and what each one's NPU (an HTP) can do.

The QNN SDK, and with it onnxruntime's provider, knows them by the same numbers.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from lfm2_export.errors import RecipeError

DEFAULT = "SM8650"  # Snapdragon 8 Gen 3
# HTP generations from which a mode exists, by ExecuTorch's guide (examples/qualcomm/oss_scripts/llama) and by trial
_SHARING_SINCE = 73  # two graphs may read one copy of the weights
_WIDE_PRODUCTS_SINCE = 73  # products of two 16-bit activations, as in attention over a 16-bit cache
_HALF_SINCE = 69  # fp16


class Soc(NamedTuple):
    """A chip: its name, the generation of its HTP (68 to 81), and ExecuTorch's `QcomChipset` for it."""

    name: str
    generation: int
    chipset: Any

    @property
    def number(self) -> int:
        """Qualcomm's own number of the chip, which the QNN SDK's `soc_model` takes."""
        return int(self.chipset)

    @property
    def shares_weights(self) -> bool:
        """Return whether two graphs in one file may read the same copy of the weights."""
        return self.generation >= _SHARING_SINCE

    def lacks(self, half: bool, attends: bool) -> str | None:
        """Return what a program needs and this chip lacks, or None if it lacks nothing.

        `half`: the program is fp16, otherwise it has 16-bit integer activations. `attends`: the model has attention
        layers.
        """
        if half and self.generation < _HALF_SINCE:
            return f"fp16 arithmetic (HTP v{_HALF_SINCE} or newer)"
        if not half and attends and self.generation < _WIDE_PRODUCTS_SINCE:
            return f"products of two 16-bit activations, which attention is (HTP v{_WIDE_PRODUCTS_SINCE} or newer)"
        return None


def named(name: object) -> Soc:
    """Return the chip of that name. RecipeError, with the list, for one that ExecuTorch does not know."""
    known = {soc.name: soc for soc in every()}
    if not isinstance(name, str) or name not in known:
        raise RecipeError(f"unknown SoC {name!r}; known: {', '.join(known)}")
    return known[name]


def names() -> tuple[str, ...]:
    """Return the name of every chip, in order."""
    return tuple(soc.name for soc in every())


def every() -> list[Soc]:
    """Return every chip of this ExecuTorch, ordered by name."""
    from executorch.backends.qualcomm.serialization.qc_schema import _soc_info_table

    return sorted(Soc(chip.name, int(info.htp_info.htp_arch), chip) for chip, info in _soc_info_table.items())
