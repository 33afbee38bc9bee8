"""How Core ML takes each kind of step: as static compilers do, but for the norms.

coremltools divides what `aten.rms_norm` gets by its largest value, so that no square overflows fp16, and then adds
epsilon as it is, not divided likewise: at values around 0.02 the result is off by several percent, and a row of zeros
becomes NaN. Here the same division is written out with its epsilon.
"""

from __future__ import annotations

import torch
from torch import Tensor

from lfm2_export.targets.static_border import Call
from lfm2_export.targets.static_entries import ENTRIES, RMSNorm, by_head
from lfm2_export.targets.static_module import Table

_SMALLEST = 2.0**-8  # divisor; (√ε / it)² still is far from fp16's limits


class _RMSNorm(RMSNorm):
    def forward(self, call: Call, x: Tensor) -> Tensor:
        largest = x.abs().amax(-1, keepdim=True).clamp(min=_SMALLEST)
        scaled, root = x / largest, self.eps**0.5 / largest
        return scaled * torch.rsqrt((scaled * scaled).mean(-1, keepdim=True) + root * root) * self.weight


class _HeadNorm(_RMSNorm):
    def forward(self, call: Call, x: Tensor) -> Tensor:
        """`[1, rows, heads·D]` → `[1, heads, rows, D]`."""
        return super().forward(call, by_head(x, self.weight.shape[0]))


TABLE: Table = ENTRIES | {"rms_norm": _RMSNorm, "head_norm": _HeadNorm}
