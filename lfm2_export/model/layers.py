"""The parts that layers of every kind share: norms and the SwiGLU MLP."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lfm2_export.model import operators


class RMSNorm(nn.Module):
    """Root-mean-square norm over the last axis."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        return operators.rms_norm(x, self.weight, self.eps)


class HeadNorm(RMSNorm):
    """The same of every head of `x [B, T, heads·D]` by itself."""

    def forward(self, x: Tensor) -> Tensor:
        return operators.head_norm(x, self.weight, self.eps)


class FeedForward(nn.Module):
    """SwiGLU (Shazeer 2020, arXiv:2002.05202): `w2(silu(w1 x) ⊙ w3 x)`."""

    def __init__(self, hidden: int, width: int) -> None:
        super().__init__()
        self.w1 = nn.Linear(hidden, width, bias=False)
        self.w2 = nn.Linear(width, hidden, bias=False)
        self.w3 = nn.Linear(hidden, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.w2(self.hidden(x))

    def hidden(self, x: Tensor) -> Tensor:
        """What w2 is called with."""
        return F.silu(self.w1(x)) * self.w3(x)
