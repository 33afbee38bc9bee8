"""How Qualcomm's HTP takes each kind of step: as static compilers do, but for the norm of heads."""

from __future__ import annotations

from torch import Tensor

from lfm2_export.targets.static_border import Call
from lfm2_export.targets.static_entries import ENTRIES, HeadNorm, RMSNorm
from lfm2_export.targets.static_module import Table


class _HeadNorm(HeadNorm):
    """HTP normalizes a tensor with two row axes wrongly: heads become rows, and the norm is over `[1, rows, width]`."""

    def forward(self, call: Call, x: Tensor) -> Tensor:
        """`[1, rows, heads·D]` → `[1, heads, rows, D]`."""
        rows, width = x.shape[1], self.weight.shape[0]
        heads = x.shape[2] // width
        normed = RMSNorm.forward(self, call, x.view(1, rows * heads, width))
        return normed.view(1, rows, heads, width).transpose(1, 2)


TABLE: Table = ENTRIES | {"head_norm": _HeadNorm}
